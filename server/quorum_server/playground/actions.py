"""What the playground's buttons do: values of its fields → the one scoring call → what it shows.

Knows no layout. Each raises `gradio.Error`, which the page shows, with the message of the server's own error.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio
from matplotlib.figure import Figure
from pydantic import ValidationError

from quorum_client._request import describe_invalid
from quorum_client.commands.score_lines import read_lines
from quorum_client.errors import InvalidRequest, QuorumError, RequestTooLarge
from quorum_client.modes import Mode, resolve_beta
from quorum_client.types import Center, CompareRequest, CompareResponse, RankRequest, ScoreRequest, ScoreResult
from quorum_server.limits import Limits
from quorum_server.playground.figures import LoadSample, draw_comparison, draw_load, draw_ranking
from quorum_server.playground.tables import most_uncertain, rank, ranking_rows, run_rows, split_candidates
from quorum_server.request_record import RequestRecord, start_record
from quorum_server.runtime import Runtime
from quorum_server.service import Call
from quorum_server.tallies import VersionTally

RUN = "playground"
"""The run that its requests are counted as."""
_DEADLINE_S = 120.0
_KEPT_SAMPLES = 150
_SHOWN_ITEMS = 50

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates that have scores. members: (N, K)."""

    candidates: tuple[str, ...]
    members: tuple[tuple[float, ...], ...]


def shows_errors(action: Callable[_P, Awaitable[_T]]) -> Callable[_P, Awaitable[_T]]:
    """An error of ours becomes a message on the page; others are logged by Gradio and shown as "Error"."""

    @wraps(action)
    async def shown(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await action(*args, **kwargs)
        except ValidationError as error:
            raise gradio.Error(describe_invalid(error)) from error
        except QuorumError as error:
            raise gradio.Error(error.message) from error

    return shown


class Actions:
    """The buttons, bound to a server.

    Args:
        runtime: the server's core.
        limits: how many items one request may have.
        tallies: what was scored of each version.
    """

    def __init__(
        self, runtime: Runtime, limits: Limits, tallies: Callable[[], Mapping[tuple[str, str], VersionTally]]
    ) -> None:
        self._runtime = runtime
        self._limits = limits
        self._tallies = tallies

    def names(self) -> list[str]:
        """Of the ensembles that serve."""
        return [ensemble.name for ensemble in self._runtime.registry.list()]

    @shows_errors
    async def rank(
        self, ensemble: str | None, prompt: str, text: str, center: Center | None, mode: Mode, beta: float
    ) -> tuple[Scored, Figure, list[list[Any]], str]:
        """Score candidates and rank them: what is kept for `again`, a picture, a table, a note."""
        candidates = split_candidates(text)
        if not candidates:
            raise InvalidRequest("there is no candidate")
        if len(candidates) < 2 and center == "group":
            center = "none"
        request = RankRequest(prompt=prompt, candidates=candidates, ensemble=ensemble, center=center, mode="mean")
        answer = await self._runtime.service.rank(request, self._call())
        kept = [
            (candidate, tuple(result.members))
            for candidate, result in zip(candidates, answer.results, strict=True)
            if result.members is not None
        ]
        if not kept:
            raise InvalidRequest("none of the candidates has a score: " + _reasons(answer.results))
        scored = Scored(tuple(one for one, _ in kept), tuple(members for _, members in kept))
        figure, rows, note = self.aggregate(scored, mode, beta)
        failed = len(candidates) - len(kept)
        more = f" {failed} without a score: {_reasons(answer.results)}" if failed else ""
        return (
            scored,
            figure,
            rows,
            f"{answer.ensemble.name}@{answer.ensemble.version}, centred: {answer.center}. {note}{more}",
        )

    @shows_errors
    async def again(self, scored: Scored | None, mode: Mode, beta: float) -> tuple[Figure | None, list[list[Any]], str]:
        """The same scores by another mode or beta: nothing is scored."""
        return (None, [], "") if scored is None else self.aggregate(scored, mode, beta)

    def aggregate(self, scored: Scored, mode: Mode, beta: float) -> tuple[Figure, list[list[Any]], str]:
        """A picture, a table, a note."""
        used = resolve_beta(mode, beta)
        ranking = rank(scored.members, mode, used)
        name = mode if used is None else f"{mode}, beta {used:g}"
        moved = int((ranking.places != ranking.mean_places).sum())
        best = ranking.order[0]
        note = f"By {name} candidate {best + 1} is the best; {moved} of {len(scored.candidates)} move against the mean."
        return draw_ranking(ranking, scored.candidates, name), ranking_rows(ranking, scored.candidates), note

    @shows_errors
    async def compare(self, ensemble: str | None, prompt: str, a: str, b: str) -> tuple[str, Figure]:
        """How probable it is that a is better, and the members' margins."""
        request = CompareRequest(prompt=prompt, a=a, b=b, ensemble=ensemble)
        answer = await self._runtime.service.compare(request, self._call())
        assert isinstance(answer, CompareResponse)
        if answer.probability is None or answer.margin is None:
            raise InvalidRequest(answer.error.message if answer.error is not None else "there is no margin")
        std = "" if answer.margin.std is None else f", std {answer.margin.std:.3f}"
        return f"P(a is better) = {answer.probability:.3f} (margin {answer.margin.mean:.3f}{std})", draw_comparison(
            answer
        )

    @shows_errors
    async def score_file(self, ensemble: str | None, path: str | None) -> tuple[list[list[Any]], str]:
        """The items of a JSON-lines file on which the members differ most."""
        if path is None:
            raise InvalidRequest("there is no file")
        lines = await asyncio.to_thread(_read, Path(path), self._limits.max_items)
        request = ScoreRequest(inputs=[item for _, item in lines], ensemble=ensemble)
        answer = await self._runtime.service.score(request, self._call())
        rows = most_uncertain([number for number, _ in lines], request.inputs, answer.results)
        failed = sum(result.error is not None for result in answer.results)
        note = f"{len(lines)} items, {failed} without a score; the {min(_SHOWN_ITEMS, len(rows))} of the largest std:"
        return rows[:_SHOWN_ITEMS], note

    def look(self, samples: Sequence[LoadSample] | None, seen: tuple[float, int] | None) -> tuple[Any, ...]:
        """The server as it is: samples to keep, sums to keep, a note, a picture, rows by run.

        Args:
            samples: what was kept.
            seen: sum and number of the stds that were counted when they were.
        """
        spreads = [run.std for tally in self._tallies().values() for run in tally.runs.values()]
        total, count = sum(one.sum for one in spreads), sum(int(one.counts.sum()) for one in spreads)
        before_total, before_count = seen or (total, count)
        fresh = count - before_count
        std = (total - before_total) / fresh if fresh > 0 else None  # fewer: a version is gone
        runtime = self._runtime
        queued = runtime.admission.held_tokens
        sample = LoadSample(asyncio.get_running_loop().time(), queued, std)
        kept = [*(samples or []), sample][-_KEPT_SAMPLES:]
        loaded = ", ".join(f"{one.name}@{one.version}" for one in runtime.registry.list()) or "nothing"
        note = f"Serves {loaded}. {runtime.service.num_under_way} requests under way, {queued} tokens queued."
        return kept, (total, count), note, draw_load(kept), run_rows(self._tallies())

    def _call(self) -> Call:
        record = RequestRecord(uuid.uuid4().hex, run_header=RUN)
        start_record(record)
        return Call(record.request_id, asyncio.get_running_loop().time() + _DEADLINE_S)


def _read(path: Path, max_items: int) -> list[tuple[int, Any]]:
    with path.open("rb") as stream:
        lines = []
        for line in read_lines(stream):
            lines.append((line.number, line.item))
            if len(lines) > max_items:
                raise RequestTooLarge(f"the file has more than {max_items} items")
    if not lines:
        raise InvalidRequest("the file has no items")
    return lines


def _reasons(results: Sequence[ScoreResult]) -> str:
    return "; ".join(sorted({result.error.message for result in results if result.error is not None}))
