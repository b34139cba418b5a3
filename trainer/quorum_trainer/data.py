"""Preference pairs: read, checked with line numbers, split by prompt, encoded.

    JSON lines  --read_pairs-->  PreferencePair  --split_held_out-->  train, held out  --encode_pairs-->  EncodedPair

Knows nothing of models or training.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from quorum_client.errors import InvalidRequest
from quorum_client.types import Prompt
from quorum_model.errors import ItemRejected
from quorum_model.prompts import PromptEncoder


class DataError(InvalidRequest):
    """A data file cannot be used; the message names file, line and field, and holds none of the text."""

    code = "invalid_data"


class PreferencePair(BaseModel):
    """One comparison: for this prompt, `chosen` was preferred to `rejected`. Other fields of the line are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: Prompt
    chosen: str
    rejected: str

    def prompt_key(self) -> str:
        """Equal for equal prompts: a string is a user's only turn."""
        if isinstance(self.prompt, str):
            return json.dumps([["user", self.prompt]])
        return json.dumps([[message.role, message.content] for message in self.prompt])


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Token ids of both sides. chosen_chars, rejected_chars: of the responses, for the length baselines.

    phase: trained on in this phase alone; None for both.
    """

    chosen: list[int]
    rejected: list[int]
    source: str
    chosen_chars: int
    rejected_chars: int
    phase: int | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of both sides."""
        return len(self.chosen) + len(self.rejected)


def read_pairs(path: Path) -> list[PreferencePair]:
    """Read a JSON-lines file of pairs (gzip by the suffix .gz).

    Raises:
        DataError: the file cannot be read, or a line is not a pair; names the line.
    """
    pairs = []
    try:
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                pairs.append(_parse(path, number, line))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path.name}: cannot be read: {error}") from error
    if not pairs:
        raise DataError(f"{path.name}: holds no pairs")
    return pairs


def _lines(path: Path) -> Iterator[str]:
    stream = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with stream:
        yield from stream


def _parse(path: Path, number: int, line: str) -> PreferencePair:
    try:
        pair = PreferencePair.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "line"
        raise DataError(f"{path.name}, line {number}: {where}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name}, line {number}: not JSON") from error
    blank = [side for side in ("chosen", "rejected") if not getattr(pair, side).strip()]
    if blank:
        raise DataError(f"{path.name}, line {number}: {blank[0]}: is empty or blank")
    return pair


def hash_file(path: Path) -> str:
    """sha256 of a file, for the manifest."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def split_held_out(
    pairs: list[PreferencePair], share: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Split by prompt: every pair of a prompt lands on one side.

    Args:
        pairs: all of one source.
        share: of the prompts, held out.
        seed: decides which.

    Returns:
        (train, held out), each in the order of `pairs`.
    """
    folds = assign_folds(pairs, num_folds=1000, seed=seed)
    threshold = round(1000 * share)
    train = [pair for pair, fold in zip(pairs, folds, strict=True) if fold >= threshold]
    held_out = [pair for pair, fold in zip(pairs, folds, strict=True) if fold < threshold]
    return train, held_out


def assign_folds(pairs: list[PreferencePair], num_folds: int, seed: int) -> list[int]:
    """A fold for every pair, by its prompt alone; folds of (nearly) equal numbers of prompts."""
    prompts = sorted({pair.prompt_key() for pair in pairs})
    random.Random(seed).shuffle(prompts)  # noqa: S311 - a split, not a secret
    fold_of = {prompt: index * num_folds // len(prompts) for index, prompt in enumerate(prompts)}
    return [fold_of[pair.prompt_key()] for pair in pairs]


def encode_pairs(
    encoder: PromptEncoder, pairs: list[PreferencePair], source: str, phase: int | None = None
) -> list[EncodedPair]:
    """Token ids of every pair, marked with their source and phase.

    Raises:
        DataError: a pair that cannot be encoded (half a character, a dialogue that the chat template refuses).
    """
    encoded = []
    for pair in pairs:
        try:
            chosen = encoder.encode_pair(pair.prompt, pair.chosen)
            rejected = encoder.encode_pair(pair.prompt, pair.rejected)
        except ItemRejected as error:
            raise DataError(f"{source}, a pair of {len(pairs)}: {error.message}") from error
        encoded.append(EncodedPair(chosen.ids, rejected.ids, source, len(pair.chosen), len(pair.rejected), phase))
    return encoded


def take(pairs: list[PreferencePair], most: int | None, seed: int) -> list[PreferencePair]:
    """At most `most` pairs, drawn at random, in their order."""
    if most is None or len(pairs) <= most:
        return pairs
    chosen = sorted(random.Random(seed).sample(range(len(pairs)), most))  # noqa: S311 - a sample, not a secret
    return [pairs[index] for index in chosen]
