"""Files of every kind, and what is wrong with them, by line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from quorum_trainer.data import DataError
from quorum_trainer.evaluation.groups import group_rows, is_whole
from quorum_trainer.evaluation.rows import (
    label_files,
    read_gold_rows,
    read_pair_rows,
    read_pool_rows,
    read_style_rows,
)

PAIR = {"prompt": "secret question", "chosen": "b", "rejected": "c"}
POOL = {"prompt": "p", "candidates": [{"text": "a", "gold": 0.25}, {"text": "b", "gold": 1, "generator": "g"}]}
STYLES = {"prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "meta": {"domain": "chat"}}
CHOICE = {"prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Focus"}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_pairs_keep_their_lines_and_tags(tmp_path: Path) -> None:
    tie = {**PAIR, "tie": True}
    path = write(tmp_path / "a.jsonl", {**PAIR, "source": "s", "subset": "t"}, "", tie, {**PAIR, "source": 3})
    rows, num_ties = read_pair_rows(path, "a")
    assert num_ties == 1
    assert [(row.line, row.tags) for row in rows] == [(1, {"subset": "t", "source": "s"}), (4, {})]
    assert (rows[0].file, rows[0].responses, rows[0].gold) == ("a", ("b", "c"), (1.0, 0.0))
    assert rows[0].prompt_key == rows[1].prompt_key


def test_pairs_may_be_conversational_and_compressed(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}]
    row = {"prompt": turns, "chosen": [{"role": "assistant", "content": "a"}], "rejected": turns}
    row["rejected"] = [{"role": "assistant", "content": "b"}]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps({**row, "source": "x"}).encode() + b"\r\n"))
    rows, _ = read_pair_rows(path, "a")
    assert (rows[0].responses, rows[0].tags) == (("a", "b"), {"source": "x"})
    assert read_gold_rows(path, "a")[0].gold == (1.0, 0.0)


def test_a_file_of_ties_has_nothing_to_order(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.jsonl: holds nothing but ties"):
        read_pair_rows(write(tmp_path / "a.jsonl", {**PAIR, "tie": True}), "a")


def test_pools_and_choices_by_the_shape_of_the_line(tmp_path: Path) -> None:
    one_chosen = {"prompt": "p", "chosen": "a", "rejected": ["b", "c", "d"]}
    rows = read_pool_rows(write(tmp_path / "a.jsonl", POOL, CHOICE, one_chosen), "a")
    assert [row.gold for row in rows] == [(0.25, 1.0), (1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)]
    assert rows[0].responses == ("a", "b")
    assert rows[1].tags == {"subset": "Focus"}


@pytest.mark.parametrize(("row", "gold"), [(POOL, (0.25, 1.0)), (CHOICE, (1, 0, 0, 0)), (PAIR, (1, 0))])
def test_gold_for_calibration_comes_from_any_of_them(row: Any, gold: tuple[float, ...], tmp_path: Path) -> None:
    assert read_gold_rows(write(tmp_path / "a.jsonl", row), "a")[0].gold == gold


def test_rm_bench_has_three_styles_a_side(tmp_path: Path) -> None:
    no_domain = {**STYLES, "meta": None}
    rows = read_style_rows(write(tmp_path / "a.jsonl", STYLES, no_domain, {**no_domain, "domain": "code"}), "a")
    assert [row.tags["domain"] for row in rows] == ["chat", "all", "code"]
    assert rows[0].responses == ("a", "b", "c", "d", "e", "f")
    assert rows[0].gold == (1, 1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("read", "line", "message"),
    [
        (read_pair_rows, "{", "line 2: not JSON"),
        (read_pool_rows, "{", "line 2: not JSON"),
        (read_pool_rows, "[1]", "line 2: not a JSON object"),
        (read_pool_rows, {"prompt": "p"}, "line 2: chosen"),
        (read_pool_rows, {"prompt": "p", "candidates": [POOL["candidates"][0]]}, "line 2: candidates"),
        (read_pool_rows, {"prompt": "p", "candidates": [{"text": "a"}] * 2}, "line 2: candidates.0.gold"),
        (
            read_pool_rows,
            '{"prompt": "p", "candidates": [{"text": "a", "gold": NaN}, {"text": "a", "gold": 1}]}',
            "line 2: candidates.0.gold",
        ),
        (read_pool_rows, {**CHOICE, "rejected": []}, "line 2: rejected"),
        (read_pool_rows, {**CHOICE, "rejected": ["b", " "]}, "line 2: a response is empty"),
        (read_style_rows, {**STYLES, "chosen": ["secret text", "b"]}, "line 2: chosen"),
        (read_style_rows, {**STYLES, "rejected": ["a", "b", 3]}, "line 2: rejected.2"),
        (read_style_rows, {"chosen": STYLES["chosen"], "rejected": STYLES["rejected"]}, "line 2: prompt"),
    ],
)
def test_bad_lines_are_named_and_not_quoted(read: Any, line: Any, message: str, tmp_path: Path) -> None:
    good = {read_pair_rows: PAIR, read_pool_rows: POOL, read_style_rows: STYLES}[read]
    path = write(tmp_path / "bad.jsonl", good, line)
    with pytest.raises(DataError, match=f"bad.jsonl, {message}") as caught:
        read(path, "bad")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_empty_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    for read in (read_pair_rows, read_pool_rows, read_style_rows, read_gold_rows):
        with pytest.raises(DataError, match=r"empty\.jsonl"):
            read(path, "empty")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read"):
        read_pool_rows(tmp_path / "gone.jsonl", "gone")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(POOL).encode() * 50)[:40])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: cannot be read"):
        read_pool_rows(cut, "cut")


def made_by(*generators: str | None) -> dict[str, Any]:
    candidates = [{"text": "a", "gold": 1, **({"generator": name} if name else {})} for name in generators]
    return {"prompt": "p", "candidates": candidates}


@pytest.mark.parametrize("generators", [("g", "g"), (None, None)])
def test_samples_of_one_policy(generators: tuple[str | None, ...], tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", made_by(*generators), made_by(*generators))
    assert read_pool_rows(path, "own", is_one_policy=True) == read_pool_rows(path, "own")


@pytest.mark.parametrize("second", [made_by("g", "h"), made_by("h", "h"), made_by("g", None), CHOICE])
def test_several_systems_are_no_policy(second: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "mixed.jsonl", made_by("g", "g"), second)
    assert len(read_pool_rows(path, "mixed")) == 2
    with pytest.raises(DataError, match=r"line 2: candidates of several generators"):
        read_pool_rows(path, "mixed", is_one_policy=True)


def test_chosen_against_rejected_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: candidates of several"):
        read_pool_rows(write(tmp_path / "choices.jsonl", CHOICE), "choices", is_one_policy=True)


def test_labels_are_as_short_as_they_can_be() -> None:
    paths = [Path("/d/hh/dev.jsonl.gz"), Path("/d/ae/dev.jsonl.gz"), Path("/d/ae/bon.jsonl")]
    assert label_files(paths) == ["hh/dev", "ae/dev", "ae/bon"]
    assert label_files(paths[1:]) == ["dev", "bon"]
    with pytest.raises(DataError, match="given twice"):
        label_files([paths[0], paths[0]])


def test_groups_are_files_and_parts_that_say_something_new(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", {**PAIR, "source": "s", "subset": "x"}, {**PAIR, "source": "s", "subset": "y"}, PAIR
    )
    other = write(tmp_path / "b.jsonl", {**PAIR, "source": "z"})
    rows = read_pair_rows(path, "a")[0] + read_pair_rows(other, "b")[0]
    groups = group_rows(rows)
    assert {name: mask.tolist() for name, mask in groups.items()} == {
        "all": [True, True, True, True],
        "a": [True, True, True, False],
        "a: subset=x": [True, False, False, False],
        "a: subset=y": [False, True, False, False],
        "a: source=s": [True, True, False, False],
        "b": [False, False, False, True],
    }
    assert list(group_rows(rows[:2])) == ["all", "a: subset=x", "a: subset=y"]
    assert [name for name in groups if is_whole(name)] == ["all", "a", "b"]
