"""Drawn lengths are those of dialogues; files are read line by line, and what is wrong is named by its line."""

from __future__ import annotations

import gzip
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from quorum_client.errors import InvalidRequest
from quorum_model.benchmark.workload import draw_sequences, encode_dialogues, plain_encoder, read_dialogues
from tests.model.benchmark.tiny_backbone import save_tiny_backbone

PAIR = {"prompt": "how are you", "chosen": "fine thanks", "rejected": "no", "source": "any"}


def write(path: Path, *rows: Any) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_drawn_lengths() -> None:
    drawn = draw_sequences(2000, 30_000, median_length=110, max_length=256)
    lengths = sorted(map(len, drawn))
    assert 104 < statistics.median(lengths) < 116
    # Log-normal with sigma 0.65: 16 % lie below 110 e^-0.65 = 57.4.
    assert 0.13 < sum(length < 57.4 for length in lengths) / 2000 < 0.19
    assert lengths[0] >= 8
    assert lengths[-1] == 256
    assert drawn[:10] == draw_sequences(10, 30_000, median_length=110, max_length=256)
    assert len({tuple(ids) for ids in drawn}) == 2000


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_pairs_and_items_are_read(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, PAIR, "", {"prompt": "hello", "response": "yes"}, {"text": "hello world"})
    dialogues = read_dialogues(path)
    assert [(own.line, len(own.items)) for own in dialogues] == [(1, 2), (3, 1), (4, 1)]
    backbone = save_tiny_backbone("bert", tmp_path / "backbone")
    encoder = plain_encoder(backbone, is_causal=False, max_length=12)
    encoded = encode_dialogues(dialogues, encoder, name)
    assert [len(own) for own in encoded] == [2, 1, 1]
    for ids in (ids for own in encoded for ids in own):
        assert (ids[0], ids[-1]) == (1, 2)  # [CLS] and [SEP]
        assert len(ids) <= 12
    assert encoded[0][0] != encoded[0][1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: not an object"),
        ({"prompt": "hello"}, "line 2"),
        ({"prompt": "hello", "chosen": "yes"}, "line 2"),
        ({"prompt": "hello", "response": 3}, "line 2: response"),
        ({"other": 1}, "line 2"),
    ],
)
def test_a_bad_line_is_named(row: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read_dialogues(write(tmp_path / "rows.jsonl", PAIR, row))


def test_a_text_that_cannot_be_encoded_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", PAIR, {"prompt": "hello", "response": " "})
    encoder = plain_encoder(save_tiny_backbone("bert", tmp_path / "backbone"), is_causal=False, max_length=30)
    with pytest.raises(InvalidRequest, match=r"rows\.jsonl, line 2: the response is empty"):
        encode_dialogues(read_dialogues(path), encoder, path.name)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_dialogues(tmp_path / "absent.jsonl")
    with pytest.raises(InvalidRequest, match="holds no dialogues"):
        read_dialogues(write(tmp_path / "empty.jsonl"))
    (tmp_path / "bad.gz").write_bytes(b"not gzip")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_dialogues(tmp_path / "bad.gz")
