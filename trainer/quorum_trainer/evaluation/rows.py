"""Evaluation files: JSON lines of several kinds, read into one kind of row.

    pairs | RM-Bench | pools of candidates with gold | chosen against several rejected  --read_*-->  [Row]

Whatever the file, a row is a prompt with responses to score and a gold number for each: 1 for chosen, 0 for rejected.
Errors name file and line and hold none of the text. Knows no models.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from quorum_client.types import Prompt
from quorum_trainer.data import DataError, PreferencePair, read_pairs
from quorum_trainer.evaluation.styles import NUM_STYLES

_TAGS = ("subset", "source")


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt's responses, scored together.

    file: its label in the report. line: from 1. gold: one a response. tags: the row's own grouping fields.
    """

    file: str
    line: int
    prompt: Prompt
    responses: tuple[str, ...]
    gold: tuple[float, ...]
    tags: dict[str, str]

    @property
    def prompt_key(self) -> str:
        """Equal for prompts that count as one: as in the split of training data, case and spacing do not matter."""
        return PreferencePair(prompt=self.prompt, chosen="-", rejected="-").loose_prompt_key()


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: Prompt


class _Candidate(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    text: str
    gold: float = Field(allow_inf_nan=False)
    generator: str | None = None


class _PoolLine(_Line):
    """Best-of-N: the candidates of one prompt, each with its gold."""

    candidates: list[_Candidate] = Field(min_length=2)


class _ChoiceLine(_Line):
    """RewardBench 2: the chosen response (one, or several) against the rejected ones."""

    chosen: list[str] = Field(min_length=1)
    rejected: list[str] = Field(min_length=1)

    @field_validator("chosen", "rejected", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class _StyleLine(_Line):
    """RM-Bench: both answers in each style."""

    chosen: list[str] = Field(min_length=NUM_STYLES, max_length=NUM_STYLES)
    rejected: list[str] = Field(min_length=NUM_STYLES, max_length=NUM_STYLES)


_AnyLine = TypeVar("_AnyLine", bound=_Line)


def label_files(paths: Sequence[Path]) -> list[str]:
    """A short name for each file: its own without suffixes, and as many of its folders as keep the names apart.

    Raises:
        DataError: a file given twice.
    """
    whole = [path.absolute() for path in paths]
    stems = [
        path.with_name(path.name.removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")) for path in whole
    ]
    for index, path in enumerate(whole):
        if path in whole[:index] or stems[index] in stems[:index]:
            raise DataError(f"{path.name}: is given twice")
    depth = 1
    while len({stem.parts[-depth:] for stem in stems}) < len(stems):
        depth += 1
    return ["/".join(stem.parts[-depth:]) for stem in stems]


def read_pair_rows(path: Path, label: str) -> tuple[list[Row], int]:
    """Preference pairs, in every format that training takes.

    Returns:
        (rows of two responses, chosen first; how many ties were left out: they have no right order).

    Raises:
        DataError: the file, or a line of it, cannot be used.
    """
    pairs = read_pairs(path)
    raw_lines = dict(_raw_lines(path))
    rows = [
        Row(
            label,
            pair.line or 0,
            pair.prompt,
            (pair.chosen, pair.rejected),
            (1.0, 0.0),
            _tags(raw_lines[pair.line or 0]),
        )
        for pair in pairs
        if not pair.tie
    ]
    if not rows:
        raise DataError(f"{path.name}: holds nothing but ties")
    return rows, len(pairs) - len(rows)


def read_style_rows(path: Path, label: str) -> list[Row]:
    """RM-Bench: six responses a row, three styles of the chosen answer and three of the rejected one.

    The tag `domain` is `meta.domain` or `domain`; rows without one are of the domain "all".

    Raises:
        DataError: the file, or a line of it, cannot be used.
    """
    gold = (1.0,) * NUM_STYLES + (0.0,) * NUM_STYLES

    def to_row(number: int, raw: dict[str, Any], line: _StyleLine) -> Row:
        meta = raw.get("meta")
        domain = meta.get("domain") if isinstance(meta, dict) else raw.get("domain")
        tags = {"domain": domain if isinstance(domain, str) and domain else "all"}
        return Row(label, number, line.prompt, (*line.chosen, *line.rejected), gold, tags)

    return _read(path, lambda _: _StyleLine, to_row)


def read_pool_rows(path: Path, label: str, *, is_one_policy: bool = False) -> list[Row]:
    """Best-of-N pools, by the line's own shape: `candidates` with gold, or `chosen` against several `rejected`.

    Args:
        path: the file.
        label: its name in the report.
        is_one_policy: the candidates are said to be one policy's samples. Where `generator` says who made them, it
            must say so too.

    Raises:
        DataError: the file, or a line of it, cannot be used.
    """
    generators: set[str | None] = set()

    def to_row(number: int, raw: dict[str, Any], line: _PoolLine | _ChoiceLine) -> Row:
        if is_one_policy:
            # Chosen and rejected responses are picked to differ, whoever wrote them.
            own = [one.generator for one in line.candidates] if isinstance(line, _PoolLine) else [None, ""]
            generators.update(own)
            if len(generators) > 1:
                raise DataError(f"{path.name}, line {number}: candidates of several generators are no policy's samples")
        if isinstance(line, _PoolLine):
            texts = tuple(candidate.text for candidate in line.candidates)
            return Row(label, number, line.prompt, texts, tuple(c.gold for c in line.candidates), _tags(raw))
        gold = (1.0,) * len(line.chosen) + (0.0,) * len(line.rejected)
        return Row(label, number, line.prompt, (*line.chosen, *line.rejected), gold, _tags(raw))

    return _read(path, lambda raw: _PoolLine if "candidates" in raw else _ChoiceLine, to_row)


def read_gold_rows(path: Path, label: str) -> list[Row]:
    """Rows to choose a mode by: pools as `read_pool_rows` reads them, or pairs as pools of two with gold 1 and 0.

    Raises:
        DataError: the file, or a line of it, cannot be used.
    """
    _, first = next(_raw_lines(path), (0, {}))
    sides = [first.get("chosen"), first.get("rejected")]
    # Lists of messages are conversational pairs; lists of texts are several responses.
    has_several = any(isinstance(side, list) and all(isinstance(text, str) for text in side) for side in sides)
    if "candidates" in first or has_several:
        return read_pool_rows(path, label)
    return read_pair_rows(path, label)[0]


def _read(
    path: Path,
    kind: Callable[[dict[str, Any]], type[_AnyLine]],
    to_row: Callable[[int, dict[str, Any], Any], Row],
) -> list[Row]:
    rows = []
    for number, raw in _raw_lines(path):
        try:
            row = to_row(number, raw, kind(raw).model_validate(raw))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{path.name}, line {number}: {where}: {first['msg']}") from error
        if not all(response.strip() for response in row.responses):
            raise DataError(f"{path.name}, line {number}: a response is empty or blank")
        rows.append(row)
    if not rows:
        raise DataError(f"{path.name}: holds no rows")
    return rows


def _raw_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every line that is not blank, with its number, as a JSON object."""
    try:
        # As bytes, as `read_pairs` does: lines end at \n alone, and numbers agree.
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if content.strip():
                    yield number, _parse(path, number, content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name}: cannot be read: {error}") from error


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        raw = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name}, line {number}: not JSON in UTF-8") from error
    if not isinstance(raw, dict):
        raise DataError(f"{path.name}, line {number}: not a JSON object")
    return raw


def _tags(raw: dict[str, Any]) -> dict[str, str]:
    return {name: raw[name] for name in _TAGS if isinstance(raw.get(name), str) and raw[name]}
