"""The lines of `quorum score`: read, batched, scored in order, written back with their scores.

    bytes  --read_lines-->  Line  --batched-->  [Line]  --score_in_order-->  (batch, parts)  --scored_lines-->  bytes

A line's own text is never re-encoded: the scores are spliced in before its closing brace, so whatever else the line
carries comes out as it went in. Knows no files and no server.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread

from pydantic import ValidationError

from quorum_client._request import describe_invalid
from quorum_client.commands.score_parts import ScoredPart
from quorum_client.errors import InvalidRequest
from quorum_client.types import ScoreItem

SCORE_KEY = "quorum"
_SPLICE = f', "{SCORE_KEY}": '.encode()

ScoreBatch = Callable[[list[ScoreItem]], list[ScoredPart]]


class BadLine(InvalidRequest):
    """A line of the input that is not an item; the message names its number."""

    code = "bad_line"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input: its number from 1, its text (a JSON object, stripped) and the item in it."""

    number: int
    text: bytes
    item: ScoreItem

    @property
    def prompt_key(self) -> str:
        """Equal for equal prompts."""
        return json.dumps(self.item.model_dump(include={"prompt"}))

    @property
    def opening(self) -> bytes:
        """What the scored line begins with: all of this one, and the key of the scores."""
        return self.text[:-1].rstrip() + _SPLICE


def read_lines(stream: Iterable[bytes]) -> Iterator[Line]:
    """Parse JSON lines; blank ones are skipped.

    Raises:
        BadLine: a line is not UTF-8, not a JSON object, not an item, or has scores already; or the gzip stream that
            the lines come from is damaged.
    """
    for number, raw in _numbered(stream):
        text = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
        if text:
            yield Line(number, text, _parse_item(number, text))


def _numbered(stream: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        for number, raw in enumerate(stream, start=1):
            yield number, raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadLine(f"after line {number}: damaged gzip: {error}") from error


def _parse_item(number: int, text: bytes) -> ScoreItem:
    try:
        record = json.loads(text.decode())
    except RecursionError as error:
        raise BadLine(f"line {number}: nested too deeply") from error
    except UnicodeDecodeError as error:
        raise BadLine(f"line {number}: not UTF-8") from error
    except ValueError as error:
        raise BadLine(f"line {number}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise BadLine(f"line {number}: not a JSON object")
    if SCORE_KEY in record:
        raise BadLine(f"line {number}: has a key {SCORE_KEY!r} already, where its scores would go")
    fields = {name: value for name, value in record.items() if name in ScoreItem.model_fields}
    try:
        return ScoreItem.model_validate(fields)
    except ValidationError as error:
        raise BadLine(f"line {number}: {describe_invalid(error)}") from error


def batched(lines: Iterable[Line], batch_size: int, *, by_prompt: bool) -> Iterator[list[Line]]:
    """Cut lines into batches.

    Args:
        lines: the input.
        batch_size: most lines of a batch; with `by_prompt` a longer run of one prompt still stays whole.
        by_prompt: keep each run of equal prompts in one batch, and two runs of one prompt apart: scores that are
            relative to their group then do not depend on the batch size.

    Raises:
        BadLine: after the batches before the bad line; with `by_prompt` the run that it cuts short is left out,
            since its group may not be complete.
    """
    batch: list[Line] = []
    try:
        for unit in _runs(lines) if by_prompt else ([line] for line in lines):
            is_repeat = by_prompt and unit[0].prompt_key in {line.prompt_key for line in batch}
            if batch and (is_repeat or len(batch) + len(unit) > batch_size):
                yield batch
                batch = []
            batch += unit
    except BadLine:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _runs(lines: Iterable[Line]) -> Iterator[list[Line]]:
    run: list[Line] = []
    for line in lines:
        if run and line.prompt_key != run[0].prompt_key:
            yield run
            run = []
        run.append(line)
    if run:
        yield run


def score_in_order(
    batches: Iterable[list[Line]], score: ScoreBatch, num_in_flight: int
) -> Iterator[tuple[list[Line], list[ScoredPart]]]:
    """Score batches, `num_in_flight` at a time, and hand them out in the order of the input.

    Raises:
        BadLine: from `batches`, after everything before it.
        QuorumError: from `score`, after every batch before the failing one; those in flight are not waited for.
    """
    window: deque[tuple[list[Line], Future[list[ScoredPart]]]] = deque()

    def first() -> tuple[list[Line], list[ScoredPart]]:
        batch, future = window.popleft()
        return batch, future.result()

    bad_line: BadLine | None = None
    try:
        for batch in batches:
            future: Future[list[ScoredPart]] = Future()
            window.append((batch, future))
            if num_in_flight == 1:
                _fulfil(future, score, batch)
            else:
                # A daemon, unlike an executor's threads: an interrupted run ends without waiting for its requests.
                Thread(target=_fulfil, args=(future, score, batch), name="quorum-score", daemon=True).start()
            if len(window) == num_in_flight:
                yield first()
    except BadLine as error:
        bad_line = error
    while window:
        yield first()
    if bad_line is not None:
        raise bad_line


def _fulfil(future: Future[list[ScoredPart]], score: ScoreBatch, batch: list[Line]) -> None:
    try:
        future.set_result(score([line.item for line in batch]))
    except BaseException as error:  # raised again where the result is asked for
        future.set_exception(error)


def scored_lines(batch: Sequence[Line], parts: Sequence[ScoredPart]) -> list[bytes]:
    """The lines of `batch` with their scores, each ending in a newline."""
    scores = [{**result.model_dump(), **part.origin} for part in parts for result in part.results]
    return [
        line.opening + json.dumps(one, allow_nan=False).encode() + b"}\n"
        for line, one in zip(batch, scores, strict=True)
    ]


def scores_of(line: Line, scored: bytes) -> dict[str, object] | None:
    """The scores in a line written by `scored_lines`; None where it is not `line` with scores."""
    if not scored.startswith(line.opening) or not scored.endswith(b"}\n"):
        return None
    try:
        scores = json.loads(scored[len(line.opening) : -2])
    except (ValueError, RecursionError):
        return None
    return scores if isinstance(scores, dict) else None
