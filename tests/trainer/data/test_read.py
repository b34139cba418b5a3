"""Reading: files as people have them, hub data sets made on the spot, and errors that say where."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from quorum_trainer.config import DataSource
from quorum_trainer.data import DataError, hash_file, read_hub, read_pairs, read_source

LINE = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": None, "source": "other fields are ignored"}
SECRET = "SECRET"
DIALOGUE = [{"role": "user", "content": "a"}]


def dump(*rows: Any, end: str = "\n") -> str:
    return "".join(json.dumps(row) + end for row in rows)


def test_plain_and_gzip_read_the_same(tmp_path: Path) -> None:
    text = dump(*({**LINE, "prompt": f"p{n}"} for n in range(3))) + "\n"
    (tmp_path / "a.jsonl").write_text(text)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.write(text)
    plain = read_pairs(tmp_path / "a.jsonl")
    assert [p.prompt for p in plain] == ["p0", "p1", "p2"]
    assert read_pairs(tmp_path / "a.jsonl.gz") == plain


def test_a_mark_at_the_start_other_line_ends_and_blank_lines(tmp_path: Path) -> None:
    text = "\ufeff" + dump(LINE, end="\r\n") + "\r\n  \n" + dump({**LINE, "prompt": "two\u2028lines"}) + "\n"
    (tmp_path / "a.jsonl").write_text(text.replace("\\u2028", "\u2028"), encoding="utf-8", newline="")
    pairs = read_pairs(tmp_path / "a.jsonl")
    assert [(pair.prompt, pair.line) for pair in pairs] == [("a", 1), ("two\u2028lines", 4)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no pairs"),
        (b"\n \r\n", "holds no pairs"),
        (b"\xff\xfe\n", "line 1: not UTF-8"),
        (json.dumps(LINE).encode() + b'\n{"prompt": "SECRET\xff"}\n', "line 2: not UTF-8"),
        (json.dumps(LINE).encode() + b'\n\n{"prompt": "SECRET\n', "line 3: not JSON"),
        (b"[" * 100_000, "line 1: not JSON"),
        (None, "cannot be read"),
    ],
)
def test_files_that_hold_nothing(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_pairs(path)
    assert caught.value.message.startswith("a.jsonl")
    assert SECRET not in caught.value.message


def test_a_broken_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(LINE).encode() * 100)
    for broken in (whole[: len(whole) // 2], whole[:12] + b"\x00" * 20 + whole[32:]):
        (tmp_path / "a.jsonl.gz").write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
            read_pairs(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({**LINE, "rejected": " \n"}, "line 2: rejected: is empty or blank"),
        ({**LINE, "margin": float("nan")}, "line 2: margin: Input should be a finite number"),
        ({**LINE, "prompt": [{"role": SECRET, "content": "a"}]}, "line 2: prompt.0.role: must be one of"),
        ([SECRET], "line 2: line: must be an object"),
        # Read alone it would be a pair with the prompt "SECRET ".
        ({"chosen": "SECRET one", "rejected": "SECRET two"}, "line 2: prompt: is missing, but given in line 1"),
    ],
)
def test_bad_rows_are_named_by_line_and_not_quoted(bad: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(dump(LINE, bad, LINE))
    with pytest.raises(DataError, match=message) as caught:
        read_pairs(tmp_path / "a.jsonl")
    assert SECRET not in caught.value.message


def test_a_prompt_among_lines_without_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n" + dump({"chosen": "Q yes", "rejected": "Q no"}, LINE))
    with pytest.raises(DataError, match="line 3: prompt: is given, but not in line 2"):
        read_pairs(tmp_path / "a.jsonl")


def test_hash_is_of_the_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes a folder that `load_dataset` can load, of one JSON-lines or parquet file; the cache is the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(rows: list[dict[str, Any]], *, name: str = "set", file: str = "train.jsonl") -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if file.endswith(".parquet"):
            datasets.Dataset.from_list(rows).to_parquet(folder / file)
        else:
            (folder / file).write_text(dump(*rows))
        return str(folder)

    return make


ROWS = [
    {"prompt": DIALOGUE, "chosen": "b", "rejected": "c", "margin": 1.5, "seen": 1},
    {"prompt": DIALOGUE, "chosen": "d", "rejected": "e", "margin": None, "seen": 2},
]


def test_a_folder_reads_as_a_file_of_the_same_rows(hub: Callable[..., str], tmp_path: Path) -> None:
    folder = hub(ROWS)
    read = read_source(DataSource(name="a", hub=folder))
    assert read.pairs == read_pairs(Path(folder) / "train.jsonl")
    assert [(pair.margin, pair.line) for pair in read.pairs] == [(1.5, 1), (None, 2)]


def test_the_hash_follows_the_pairs_and_not_the_file_format(hub: Callable[..., str]) -> None:
    of_lines = read_hub(hub(ROWS)).sha256
    of_parquet = read_hub(hub(ROWS, name="parquet", file="train.parquet")).sha256
    without_column = [{key: value for key, value in row.items() if key != "seen"} for row in ROWS]
    assert of_lines == of_parquet == read_hub(hub(without_column, name="fewer")).sha256
    # A constant: what another machine must also get, from sha256 over the canonical lines written out by hand.
    assert of_lines == "28d9005441049e14a84d091a259126f3e592c287b751543e1be34e9c557b31b0"
    for number, change in enumerate(({"chosen": "x"}, {"margin": 1.0}, {"tie": True, "margin": None})):
        assert read_hub(hub([{**ROWS[0], **change}, ROWS[1]], name=f"changed{number}")).sha256 != of_lines
    assert read_hub(hub(ROWS[::-1], name="order")).sha256 != of_lines


def test_split_and_subset_choose(hub: Callable[..., str]) -> None:
    folder = hub(ROWS[:1])
    hub(ROWS[1:], file="test.jsonl")
    assert [pair.chosen for pair in read_hub(folder, split="test").pairs] == ["d"]
    configs = [
        "configs:",
        "- {config_name: one, data_files: train.jsonl}",
        "- {config_name: two, data_files: test.jsonl}",
    ]
    (Path(folder) / "README.md").write_text("\n".join(["---", *configs, "---", ""]))
    assert [pair.chosen for pair in read_hub(folder, subset="two").pairs] == ["d"]
    source = DataSource(name="a", hub=folder, subset="one", split="train")
    assert [pair.chosen for pair in read_source(source).pairs] == ["b"]


def test_rows_of_a_data_set_are_checked_like_lines(hub: Callable[..., str]) -> None:
    folder = hub([ROWS[0], {**ROWS[1], "chosen": " "}])
    with pytest.raises(DataError, match="set, row 2: chosen: is empty or blank"):
        read_hub(folder)
    with pytest.raises(DataError, match="row 1: rejected: is missing"):
        read_hub(hub([{"prompt": "a", "chosen": SECRET}], name="narrow"))


def test_what_cannot_be_loaded_is_named(hub: Callable[..., str], tmp_path: Path) -> None:
    folder = hub(ROWS)
    with pytest.raises(DataError, match=r'cannot be loaded: Unknown split "nope"'):
        read_hub(folder, split="nope")
    with pytest.raises(DataError, match="cannot be loaded: BuilderConfig 'nope' not found"):
        read_hub(folder, subset="nope")
    with pytest.raises(DataError, match="some-org/no-such-set: cannot be loaded"):
        read_hub("some-org/no-such-set")
    (Path(folder) / "train.jsonl").write_text('{"prompt": "SECRET\n{')
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        read_hub(folder)
    assert SECRET not in caught.value.message
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="cannot be loaded"):
        read_hub(folder)
