"""The file of records of `quorum best-of-n`: one line a prompt, appended as it is done, continued by a later run.

    FILE  --open_journal-->  what is done  --Journal.add-->  FILE, one line longer

A line that was cut off in the middle (a killed run) is cut away; any other file is left as it is and refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from quorum_client.best_of_n.prompts import PromptTask
from quorum_client.best_of_n.record import Asked, Record
from quorum_client.errors import InvalidRequest, QuorumError

_OPENING = b'{"prompt_id": "'
"""Of every record: a line that was cut off is known by it."""


class RecordsDiffer(InvalidRequest):
    """The file of records is not what this run would have written so far; it is left as it is."""

    code = "cannot_resume"

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}; give another --out")


class OriginChanged(QuorumError):
    """The server answers by another ensemble, mode or centring than the records before; the answer is not written."""

    code = "origin_changed"


class Journal:
    """Records of one run and of those that it continues; all by one ensemble version, mode, beta and centring.

    Args:
        path: the file; created with the first record.
        kept: records that are there.
        size: bytes of them; what follows is a torn line.
    """

    def __init__(self, path: Path, kept: Sequence[Record], size: int) -> None:
        self._path = path
        self._size = size
        self._file: BinaryIO | None = None
        self.records = {record.prompt_id: record for record in kept}
        self._origins: dict[bool, dict[str, Any]] = {}
        for record in kept:
            self._check(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, record: Record) -> None:
        """Append a record and hand it to the operating system.

        Raises:
            OriginChanged: see there.
            OSError: it cannot be written.
        """
        self._check(record)
        if self._file is None:
            self._file = self._path.open("ab")
            os.truncate(self._path, self._size)
        self._file.write(json.dumps(record.line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()
        self.records[record.prompt_id] = record

    def _check(self, record: Record) -> None:
        origin = record.origin
        if origin is None:
            return
        # A single candidate has no group: its centring differs by right.
        kind = len(record.line["candidates"]) == 1
        before = self._origins.setdefault(kind, origin)
        ensemble = next(iter(self._origins.values()))["ensemble"]
        if origin != before or origin["ensemble"] != ensemble:
            raise OriginChanged(f"{self._path} has records by {before}, and the next answer is by {origin}")


def open_journal(path: Path, tasks: Sequence[PromptTask], asked: Asked | None, ranking: dict[str, object]) -> Journal:
    """Read what earlier runs left.

    Args:
        path: the file; it may be missing.
        tasks: the prompts of this run.
        asked: what this run generates with; None for given candidates.
        ranking: mode, beta, center and ensemble (name or name@version) that this run asks for, where it does.

    Raises:
        RecordsDiffer: the file holds something else, or records of other prompts or options.
    """
    if not path.exists():
        return Journal(path, [], 0)
    prompts = {task.prompt_id: task for task in tasks}
    kept, size = [], 0
    for number, raw in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not raw.endswith(b"\n"):
            if raw[: len(_OPENING)] != _OPENING[: len(raw)]:
                raise RecordsDiffer(path, f"line {number} is not the beginning of a record")
            break
        record = _read(path, number, raw)
        task = prompts.get(record.prompt_id)
        if task is None or task.to_json() != record.line["prompt"]:
            raise RecordsDiffer(path, f"line {number} is of a prompt that this run does not have")
        if task.candidates is None and record.asked != (asked and asked.to_json()):
            raise RecordsDiffer(
                path, f"line {number} was generated with {record.asked}, not with {asked and asked.to_json()}"
            )
        _check_ranking(path, number, record, ranking)
        following = None if record.picked is None else task.next_turn(record.picked)
        if following is not None:  # its record comes after this one
            prompts[following.prompt_id] = following
        kept.append(record)
        size += len(raw)
    try:
        return Journal(path, kept, size)
    except OriginChanged as error:
        raise RecordsDiffer(path, error.message) from error


def _read(path: Path, number: int, raw: bytes) -> Record:
    try:
        line = json.loads(raw)
        record = Record(line)
        _ = record.prompt_id, record.picked, record.origin, record.asked, line["prompt"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RecordsDiffer(path, f"line {number} is no record of best-of-n") from error
    return record


def _check_ranking(path: Path, number: int, record: Record, ranking: dict[str, object]) -> None:
    origin = record.origin or {}
    for name, wanted in ranking.items():
        was = origin.get(name)
        if isinstance(was, dict):
            was = f"{was['name']}@{was['version']}" if "@" in str(wanted) else was["name"]
        if was is not None and was != wanted and not (name == "center" and len(record.line["candidates"]) == 1):
            raise RecordsDiffer(path, f"line {number} was ranked with {name} {was}, and this run would use {wanted}")
