"""Preference data from files and from hub data sets.

    a file of JSON lines  --read_pairs-->  list[PreferencePair]  <--read_hub--  a data set of the hub or a folder

Every error names the file and line, or the data set and row. Knows nothing of splits, models or training.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quorum_trainer.config.data import DataSource
from quorum_trainer.data.formats import RowRejected, pair_of_row
from quorum_trainer.data.pairs import DataError, PreferencePair

_FIELDS = ("prompt", "chosen", "rejected", "margin", "tie")


@dataclass(frozen=True, slots=True)
class SourcePairs:
    """All pairs of a source, and the sha256 that says which they were: of the file, or as `read_hub` has it."""

    pairs: list[PreferencePair]
    sha256: str


def read_source(source: DataSource) -> SourcePairs:
    """Read what a config's source names.

    Raises:
        DataError: it cannot be read, or holds something that is not a pair.
    """
    if source.path is not None:
        path = Path(source.path)
        return SourcePairs(read_pairs(path), hash_file(path))
    assert source.hub is not None
    return read_hub(source.hub, split=source.split or "train", subset=source.subset, revision=source.revision)


def read_pairs(path: Path) -> list[PreferencePair]:
    """Read a JSON-lines file of pairs (gzip by the suffix .gz); blank lines are skipped.

    Raises:
        DataError: the file cannot be read, or a line is not a pair; names the line.
    """
    try:
        return _pairs(numbered_rows(path), path.name, "line")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name}: cannot be read: {error}") from error


def read_hub(hub: str, *, split: str = "train", subset: str | None = None, revision: str | None = None) -> SourcePairs:
    """Read a data set of the hub, or a folder of data files, as `datasets.load_dataset` does.

    Args:
        hub: an id, or a folder.
        split: `train`, or any that load_dataset understands (`train[:1000]`).
        subset: name of its configuration, where it has several.
        revision: of the hub's repository.

    Returns:
        Its pairs. sha256 is over their texts, margins and ties alone, one line of JSON each: the same on every
        machine and in every file format, and unmoved by columns that are not read.

    Raises:
        DataError: it cannot be loaded, or a row is not a pair; names the row, counted from 1.
    """
    from datasets import load_dataset  # here, because it takes seconds that files do without
    from datasets.exceptions import DatasetsError

    try:
        table = load_dataset(hub, name=subset, split=split, revision=revision)
    except (DatasetsError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{hub}: cannot be loaded: {reason}") from error
    table = table.select_columns([name for name in table.column_names if name in _FIELDS])
    pairs = _pairs(enumerate(table, start=1), hub, "row")
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(json.dumps(pair.model_dump(exclude={"line"}), sort_keys=True).encode() + b"\n")
    return SourcePairs(pairs, digest.hexdigest())


def hash_file(path: Path) -> str:
    """sha256 of a file, for the manifest."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pairs(rows: Iterable[tuple[int, object]], name: str, unit: str) -> list[PreferencePair]:
    """Pairs of numbered rows; all of them have a prompt of their own, or none has.

    A line that lost its prompt among lines that have one must not be read as a pair with an implicit prompt.
    """
    pairs: list[PreferencePair] = []
    first: tuple[int, bool] | None = None
    for number, row in rows:
        try:
            pairs.append(pair_of_row(row, number))
            has_prompt = isinstance(row, dict) and "prompt" in row
            if first is None:
                first = (number, has_prompt)
            if has_prompt != first[1]:
                what = "is given, but not in" if has_prompt else "is missing, but given in"
                raise RowRejected("prompt", f"{what} {unit} {first[0]}")
        except RowRejected as error:
            raise DataError(f"{name}, {unit} {number}: {error}") from error
    if not pairs:
        raise DataError(f"{name}: holds no pairs")
    return pairs


def numbered_rows(path: Path) -> Iterator[tuple[int, object]]:
    """The values of a file of JSON lines (gzip by the suffix .gz), numbered from 1; blank lines are skipped.

    Raises:
        DataError: a line is not JSON in UTF-8; names it.
        OSError, EOFError, zlib.error: the file cannot be read.
    """
    # As bytes: then lines end at \n alone, and a byte that is no UTF-8 has a line number.
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if content.strip():
                yield number, _parse(content, f"{path.name}, line {number}")


def _parse(line: bytes, where: str) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON") from error
