"""Where `quorum score` writes: appends whole batches, and continues a file that an earlier run left.

    input lines + lines already written  --resume-->  Resumed (what is left to score)
    scored lines  --OutputFile.write-->  file | stdout

A file is changed only after everything in it proved to be this input, scored. Knows no scorer.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from quorum_client.commands.score_lines import Line, scores_of
from quorum_client.commands.score_parts import ScoredPart, differing
from quorum_client.errors import InvalidRequest


class CannotResume(InvalidRequest):
    """The output file is not a beginning of what this run would write; it is left as it is."""

    code = "cannot_resume"

    def __init__(self, path: Path | None, problem: str) -> None:
        super().__init__(f"{path}: {problem}; give another --out, or --overwrite to start anew")


def open_lines(path: Path | None, mode: str) -> AbstractContextManager[BinaryIO]:
    """Open a file of lines, gzip by its suffix.

    Args:
        path: None is stdin or stdout.
        mode: rb, wb or ab.
    """
    if path is None:
        return nullcontext(sys.stdin.buffer if mode == "rb" else sys.stdout.buffer)
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, mode))
    return cast(BinaryIO, path.open(mode))


@dataclass(frozen=True, slots=True)
class Resumed:
    """An output file that is being continued.

    path: the file; None is stdout. rest: the lines still to score. num_kept: lines already in the file.
    last_scores: the scores of the last line that an earlier run wrote, of one with an ensemble where there is any.
    is_torn: whether something follows the kept lines, to be cut off before more is written.
    """

    path: Path | None
    rest: Iterator[Line]
    num_kept: int = 0
    last_scores: dict[str, object] | None = None
    is_torn: bool = False

    def check_asked(self, asked: Mapping[str, object]) -> None:
        """Refuse options that the lines in the file were not scored with, even where nothing is left to score.

        Args:
            asked: options that were given; those left to the bundle are not in it. ensemble: name or name@version.

        Raises:
            CannotResume: names the first option that differs.
        """
        before = self.last_scores or {}
        for name, wanted in asked.items():
            was = before.get(name)
            if isinstance(was, dict):  # the ensemble
                version = f"{was['name']}@{was['version']}"
                was = version if "@" in str(wanted) else was["name"]
            if was is not None and was != wanted:
                raise CannotResume(self.path, f"was scored with {name} {was}, and this run would use {wanted}")

    def check(self, parts: Sequence[ScoredPart]) -> None:
        """Refuse to mix two ways of scoring in one file.

        Raises:
            CannotResume: `parts` have another ensemble version, mode, beta, center, normalize, truncate or dtype than
                the lines in the file.
        """
        for part in parts if self.last_scores is not None else []:
            before = self.last_scores or {}
            names = differing(before, part.origin)
            if names:
                was, now = ({name: origin.get(name) for name in names} for origin in (before, part.origin))
                raise CannotResume(self.path, f"was scored with {was}, and this run would use {now}")


def resume(path: Path, lines: Iterator[Line], *, by_prompt: bool) -> Resumed:
    """Find where an earlier run stopped; the file stays as it is until `OutputFile` writes to it.

    Args:
        path: the output file; it may be missing.
        lines: the input from its first line.
        by_prompt: scores are relative to the run of equal prompts: a run that is only half there is scored again.

    Raises:
        CannotResume: the file holds something else.
        BadLine: from `lines`.
    """
    if not path.is_file():
        return Resumed(path, lines)
    num_kept, is_torn = 0, False
    last_scores: dict[str, object] | None = None
    last_run: list[Line] = []
    rest = lines
    for number, written in enumerate(_written_lines(path), start=1):
        line = next(lines, None)
        if written.endswith(b"\n"):
            scores = None if line is None else scores_of(line, written)
            if line is None or scores is None:
                raise CannotResume(path, f"line {number} is not that line of the input with its scores")
            if last_scores is None or last_scores.get("ensemble") is None or scores.get("ensemble") is not None:
                last_scores = scores
            last_run = [*last_run, line] if last_run and last_run[0].prompt_key == line.prompt_key else [line]
            num_kept = number
        else:
            is_torn = True
            expected = b"" if line is None else line.opening
            if (line is None and written) or written[: len(expected)] != expected[: len(written)]:
                raise CannotResume(path, f"line {number} is not the beginning of that line of the input")
            rest = lines if line is None else chain([line], lines)
    if by_prompt and last_run:
        following = next(rest, None)
        is_split = following is not None and following.prompt_key == last_run[0].prompt_key
        rest = chain(last_run if is_split else [], [] if following is None else [following], rest)
        num_kept -= len(last_run) if is_split else 0
        is_torn = is_torn or is_split
    return Resumed(path, rest, num_kept, last_scores, is_torn)


def _written_lines(path: Path) -> Iterator[bytes]:
    """The file's lines; the last has no newline where the earlier run was cut off in the middle."""
    try:
        with open_lines(path, "rb") as file:
            yield from file
    except EOFError:
        yield b""  # a gzip stream without its end: whatever half line it held cannot be read
    except (gzip.BadGzipFile, zlib.error) as error:
        raise CannotResume(path, f"is not readable as gzip ({error})") from error


def _keep_first(path: Path, num_lines: int) -> None:
    target = path.resolve()
    partial = target.with_name(f".partial-{target.name}")
    with open_lines(target, "rb") as source, open_lines(partial, "wb") as copy:
        copy.writelines(islice(source, num_lines))
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    shutil.copymode(target, partial)
    partial.replace(target)


class OutputFile:
    """Appends lines to a file (or stdout where `path` is None), whole batches at a time.

    The file is opened with the first batch, so that a run that scores nothing destroys nothing.

    Args:
        path: where to; None is stdout.
        append: whether what is there stays.
        keep_lines: with `append`, how many of its first lines; all if None.
    """

    def __init__(self, path: Path | None, *, append: bool, keep_lines: int | None = None) -> None:
        self._path = path
        self._keep_lines = keep_lines
        self._mode = "ab" if append else "wb"
        self._stack = ExitStack()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is None:
            self.write([])
        self._stack.close()

    def write(self, lines: Sequence[bytes]) -> None:
        """Write lines and hand them to the operating system: an interrupted run keeps them."""
        if self._file is None:
            if self._path is not None and self._keep_lines is not None:
                _keep_first(self._path, self._keep_lines)
            self._file = self._stack.enter_context(open_lines(self._path, self._mode))
        self._file.writelines(lines)
        self._file.flush()
