"""What everyone scores: token ids of real dialogues, or drawn ones of the lengths that real dialogues have.

    seed                 --draw_sequences-->   token ids
    a file of JSON lines --read_dialogues-->   items  --encode_dialogues-->  token ids

Knows no model.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quorum_client.errors import InvalidRequest
from quorum_client.types import ScoreItem
from quorum_model.errors import ItemRejected
from quorum_model.prompts import PromptEncoder, default_prompt_format
from quorum_model.sources import load_tokenizer, vocabulary_size

_SIGMA, _SHORTEST = 0.65, 8


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One line of a file. line: counted from 1. items: its texts, (chosen, rejected) where it is a pair."""

    line: int
    items: tuple[ScoreItem, ...]


def draw_sequences(
    count: int, vocab_size: int, *, median_length: int, max_length: int, seed: int = 0
) -> list[list[int]]:
    """Random token ids of log-normal lengths (sigma 0.65: the long tail of human dialogues), cut at `max_length`.

    The texts do not matter to the time, their lengths do. A longer draw begins with the shorter one.
    """
    draw = random.Random(seed)  # noqa: S311 - lengths, not secrets
    first = min(1000, vocab_size // 2)  # special tokens come first in most vocabularies
    sequences = []
    for _ in range(count):
        length = round(median_length * math.exp(_SIGMA * draw.gauss(0, 1)))
        length = min(max_length, max(min(_SHORTEST, max_length), length))
        sequences.append([draw.randrange(first, vocab_size) for _ in range(length)])
    return sequences


def read_dialogues(path: Path) -> list[Dialogue]:
    """Read JSON lines (gzip by the suffix .gz): pairs, or items as `quorum score` takes them; blank lines are skipped.

    Raises:
        InvalidRequest: the file cannot be read, or a line is neither; names the line.
    """
    try:
        dialogues = [Dialogue(number, _items(row, f"{path.name}, line {number}")) for number, row in _rows(path)]
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidRequest(f"{path.name}: cannot be read: {error}") from error
    if not dialogues:
        raise InvalidRequest(f"{path.name}: holds no dialogues")
    return dialogues


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"{path.name}, line {number}: not JSON") from error
            if not isinstance(row, dict):
                raise InvalidRequest(f"{path.name}, line {number}: not an object")
            yield number, row


def _items(row: dict[str, Any], where: str) -> tuple[ScoreItem, ...]:
    """Only what is scored is looked at: data sets have other columns too."""
    if "chosen" in row or "rejected" in row:
        wanted = [{"prompt": row.get("prompt"), "response": row.get(side)} for side in ("chosen", "rejected")]
    else:
        wanted = [{name: row[name] for name in ("prompt", "response", "text", "token_ids") if name in row}]
    try:
        return tuple(ScoreItem.model_validate(item) for item in wanted)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{where}: {field}: {first['msg']}") from error


def encode_dialogues(
    dialogues: Sequence[Dialogue], encoder: PromptEncoder, file_name: str
) -> list[tuple[list[int], ...]]:
    """Token ids of every item, cut to the encoder's length.

    Raises:
        InvalidRequest: an item that cannot be encoded; names the line.
    """
    encoded = []
    for dialogue in dialogues:
        try:
            encoded.append(tuple(encoder.encode(item).ids for item in dialogue.items))
        except ItemRejected as error:
            raise InvalidRequest(f"{file_name}, line {dialogue.line}: {error.message}") from error
    return encoded


def plain_encoder(backbone: Path, *, is_causal: bool, max_length: int) -> PromptEncoder:
    """The encoder that a new ensemble on this backbone would have: its tokenizer's own format, or the plain one."""
    tokenizer = load_tokenizer(backbone)
    prompt_format, bos_ids, eos_ids = default_prompt_format(tokenizer, is_causal=is_causal)
    return PromptEncoder(
        tokenizer,
        template=prompt_format.template,
        bos_ids=bos_ids,
        eos_ids=eos_ids,
        max_length=max_length,
        vocab_size=vocabulary_size(backbone),
    )
