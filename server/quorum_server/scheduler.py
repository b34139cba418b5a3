"""The queue in front of the engines: requests that wait together are scored in one pass.

    submit(version, sequences)  -->  queue  --dispatch: plan a pass, least loaded engine-->  deliver  -->  JobScores

No batching delay: an idle engine takes what waits at once, and whatever arrives meanwhile forms the next pass. Behind a
pass under way a second one is sent only if it is full, for then nothing is gained by waiting for company; so a busy
engine never waits for its next pass to cross the pipe. Knows neither HTTP nor torch nor text.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from quorum_client.errors import NotReady
from quorum_server.admission import Admission
from quorum_server.engine.messages import EngineLost, TokenIds
from quorum_server.events import Observer, PassReport
from quorum_server.isolation import PassEngine, PassScores, score_apart
from quorum_server.jobs import Job, JobScores, Part
from quorum_server.packing import Order, Unit, plan_pass

logger = logging.getLogger(__name__)

_PASSES_AHEAD = 2
"""Most passes at one engine: the one under way and the next."""
_MAX_PLANNED = 512
"""Most requests that one plan looks at: thousands may wait, and planning holds the event loop up."""
_MAX_LOST_ALONE = 16
"""Most engines that are lost with one request alone. One text of 4096 takes 13; beyond, the engines are at fault."""
_ENDED = "the server is shutting down"


class ScoringEngine(PassEngine, Protocol):
    """What the scheduler needs of an engine."""

    @property
    def is_ready(self) -> bool:
        """Whether it can score now."""

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt to make it ready failed, so that waiting for it may be in vain."""


@dataclass(eq=False, slots=True)
class _Lane:
    """An engine and what is sent to it. free_s: when it answered last, on the event loop's clock."""

    index: int
    engine: ScoringEngine
    num_passes: int = 0
    num_tokens: int = 0
    free_s: float = 0.0
    holds_suspect: bool = False


class Scheduler:
    """Collects jobs into passes under a token budget and spreads them over engines.

    Args:
        engines: at least one; each scores any version.
        admission: refuses work beyond a bound.
        observer: is told of passes and waiting times.
    """

    def __init__(
        self,
        engines: Sequence[ScoringEngine],
        *,
        admission: Admission,
        observer: Observer | None = None,
    ) -> None:
        self._lanes = [_Lane(index, engine) for index, engine in enumerate(engines)]
        self._admission = admission
        self._observer = observer or Observer()
        self._jobs: dict[int, Job] = {}  # in order of arrival; unanswered ones only
        self._waiting_tokens = 0
        self._is_arrivals_turn = True
        self._has_ended = False
        self._wake = asyncio.Event()
        self._passes: set[asyncio.Task[None]] = set()

    @property
    def num_jobs(self) -> int:
        """Requests accepted and not yet answered."""
        return len(self._jobs)

    @property
    def _full_pass(self) -> int:
        """Tokens that fill the next pass, about: of the version that has waited longest."""
        return next(iter(self._jobs.values())).token_budget if self._jobs else 1

    def wake(self) -> None:
        """Look again: an engine has become ready, or has failed."""
        self._wake.set()

    async def submit(
        self, version: str, sequences: Sequence[TokenIds], units: Sequence[Unit], token_budget: int
    ) -> JobScores:
        """Queue sequences and wait for their scores; a cancelled caller leaves the queue at once.

        Args:
            version: the ensemble version to score with.
            sequences: B >= 1 non-empty sequences.
            units: see `cut_units`.
            token_budget: most tokens in a pass of this version.

        Raises:
            ValueError: no sequences, or an empty one.
            Overloaded, RequestTooLarge: see `Admission`.
            NotReady: no engine is left, or engine after engine is lost.
        """
        if not sequences or min(map(len, sequences)) == 0:
            raise ValueError("a job needs at least one sequence, and each sequence a token")
        if self._has_ended:
            raise NotReady(_ENDED)
        loop = asyncio.get_running_loop()
        with self._admission.hold_tokens(sum(map(len, sequences))):
            job = Job(version, token_budget, sequences, deque(units), loop.create_future(), loop.time())
            self._jobs[id(job)] = job
            self._waiting_tokens += sum(unit.num_tokens for unit in units)
            self.wake()
            try:
                return await job.future
            finally:
                self._remove(job)

    async def run(self) -> None:
        """Send passes for ever; on cancellation whatever still waits fails with NotReady."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                self._dispatch()
        finally:
            for task in self._passes:
                task.cancel()
            self.end()

    def end(self) -> None:
        """Answer whatever waits, and whatever still comes, with NotReady."""
        self._has_ended = True
        self._fail_all(NotReady(_ENDED))

    def _fail_all(self, error: Exception) -> None:
        for job in list(self._jobs.values()):
            job.fail(error)
            self._remove(job)

    def _dispatch(self) -> None:
        """Send every pass that can go now."""
        if all(lane.engine.has_failed for lane in self._lanes):
            self._fail_all(NotReady("no engine can be started; the server's log says why"))
        while self._waiting_tokens > 0 and (lane := self._next_lane()) is not None:
            parts = self._take_suspect(lane) or self._take_parts()
            if not parts:
                return
            lane.num_passes += 1
            lane.num_tokens += sum(part.num_tokens for part in parts)
            task = asyncio.get_running_loop().create_task(self._run_pass(lane, parts))
            self._passes.add(task)
            task.add_done_callback(self._passes.discard)

    def _next_lane(self) -> _Lane | None:
        """Where the next pass goes: to an idle engine; where none is idle, a full one behind a pass under way."""
        lanes = [lane for lane in self._lanes if lane.engine.is_ready and not lane.holds_suspect]
        lane = min(lanes, key=lambda lane: (lane.num_passes, lane.num_tokens), default=None)
        if lane is None or lane.num_passes >= _PASSES_AHEAD:
            return None
        if lane.num_passes > 0 and self._waiting_tokens < self._full_pass:
            return None
        return lane

    def _take_suspect(self, lane: _Lane) -> list[Part]:
        """A part that an engine was lost with goes alone, to an idle engine: if it is at fault, it falls alone."""
        job = next((job for job in self._jobs.values() if job.suspects and not job.future.done()), None)
        if job is None or lane.num_passes > 0:
            return []
        lane.holds_suspect = True
        part = job.suspects.popleft()
        self._waiting_tokens -= part.num_tokens
        return [part]

    def _take_parts(self) -> list[Part]:
        jobs = [job for job in self._jobs.values() if job.waiting and not job.future.done()]
        order: Order = "arrival" if self._is_arrivals_turn else "least_served"
        self._is_arrivals_turn = not self._is_arrivals_turn
        if order == "least_served":
            jobs.sort(key=lambda job: job.served_tokens)
        jobs = jobs[:_MAX_PLANNED]
        counts = plan_pass([job.as_waiting for job in jobs], order)
        return [self._take(job, count) for job, count in zip(jobs, counts, strict=True) if count > 0]

    def _take(self, job: Job, count: int) -> Part:
        if job.served_tokens == 0:
            self._observer.left_queue(asyncio.get_running_loop().time() - job.queued_s)
        part = job.take(count)
        self._waiting_tokens -= part.num_tokens
        return part

    async def _run_pass(self, lane: _Lane, parts: list[Part]) -> None:
        sequences = [part.job.sequences[index] for part in parts for index in part.indices]
        num_tokens = sum(part.num_tokens for part in parts)
        version = parts[0].job.version
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        try:
            scores = await score_apart(lane.engine, version, sequences)
        except EngineLost as error:
            self._put_back(parts, error)
        except NotReady as error:
            for job in {id(part.job): part.job for part in parts}.values():
                job.fail(error)
                self._remove(job)
        except Exception:
            logger.exception("none of %d sequences can be scored", len(sequences))
            for part in parts:
                part.job.deliver_failure(part.indices)
        else:
            now_s, submitted = loop.time(), sum(map(len, sequences))
            self._admission.measure(submitted, now_s - max(sent_s, lane.free_s), len(self._lanes))
            self._observer.pass_finished(
                PassReport(lane.index, version, len(sequences), submitted, scores.computed_tokens, now_s - sent_s)
            )
            _deliver(parts, scores)
        finally:
            lane.num_passes -= 1
            lane.num_tokens -= num_tokens
            lane.holds_suspect = False
            lane.free_s = loop.time()
            self.wake()

    def _put_back(self, parts: list[Part], error: EngineLost) -> None:
        """Parts of a pass whose engine was lost go once more, each alone, to another one or to its successor.

        A part that loses that one too is halved, until the sequences at fault stand alone: they cannot be scored.
        """
        for part in parts:
            job = part.job
            if id(job) not in self._jobs:
                continue
            job.num_lost_alone += part.was_lost
            if not part.was_lost:
                self._suspect(replace(part, was_lost=True))
            elif len(part.indices) == 1:
                logger.error("a sequence of %d tokens ended its engine twice", part.num_tokens, exc_info=error)
                job.deliver_failure(part.indices)
            elif job.num_lost_alone < _MAX_LOST_ALONE:
                for half in part.halves():
                    self._suspect(half)
            else:
                job.fail(error)
                self._remove(job)

    def _suspect(self, part: Part) -> None:
        part.job.suspects.append(part)
        self._waiting_tokens += part.num_tokens

    def _remove(self, job: Job) -> None:
        if self._jobs.pop(id(job), None) is not None:
            self._waiting_tokens -= job.waiting_tokens


def _deliver(parts: list[Part], scores: PassScores) -> None:
    """Hand out the columns; shares of the work by tokens, rounded so that they add up to what the engine computed."""
    total = sum(part.num_tokens for part in parts)
    column = tokens_before = shared_before = 0
    for part in parts:
        indices = part.indices
        columns = range(column, column + len(indices))
        column += len(indices)
        tokens_before += part.num_tokens
        shared = round(scores.computed_tokens * tokens_before / total)
        failed = [index for index, place in zip(indices, columns, strict=True) if place in scores.failed]
        part.job.deliver(indices, scores.raw[:, columns.start : columns.stop], failed, shared - shared_before)
        shared_before = shared
