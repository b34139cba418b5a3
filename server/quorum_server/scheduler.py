"""The queue in front of the engine: requests that wait together are scored in one pass.

    submit(version, sequences)  -->  queue  --step: collect, engine, deliver-->  Scores

No batching delay: a lone request waits for nobody; whatever arrives while a pass runs forms the next one. Each job gets
exactly one answer, in order of arrival. Knows neither HTTP nor torch nor text.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quorum_client.errors import InternalError, NotReady, Overloaded, QuorumError, RequestTooLarge
from quorum_server.engine.messages import Scores, TokenIds
from quorum_server.events import Observer, PassReport
from quorum_server.packing import plan_pass

_MAX_RETRY_AFTER_S = 60
_RATE_SMOOTHING = 0.2


class ScoringEngine(Protocol):
    """What the scheduler needs of an engine."""

    async def score(self, version: str, sequences: Sequence[TokenIds]) -> Scores:
        """Raw scores of B >= 1 sequences; raises a `QuorumError` where there are none."""


@dataclass(frozen=True, slots=True)
class JobScores:
    """raw: float32 (K, B), in the order submitted. computed_tokens: this job's share of the engine's work."""

    raw: NDArray[np.float32]
    computed_tokens: int


@dataclass(eq=False, slots=True)
class _Job:
    """A request's sequences. num_sent: how many are scored or in the pass under way."""

    version: str
    sequences: Sequence[TokenIds]
    lengths: list[int]
    future: asyncio.Future[JobScores]
    queued_s: float
    num_sent: int = 0
    parts: list[NDArray[np.float32]] = field(default_factory=list)
    computed_tokens: int = 0


class Scheduler:
    """Collects jobs into passes under a token budget, and refuses work beyond a bound.

    Args:
        engine: scores one pass at a time.
        token_budget: most tokens in one pass.
        max_queued_tokens: most tokens accepted and not yet answered.
        observer: is told of passes and waiting times.
    """

    def __init__(
        self, engine: ScoringEngine, *, token_budget: int, max_queued_tokens: int, observer: Observer | None = None
    ) -> None:
        self._observer = observer or Observer()
        self._engine = engine
        self._token_budget = token_budget
        self._max_queued_tokens = max_queued_tokens
        self._jobs: dict[int, _Job] = {}  # in order of arrival; unanswered ones only
        self._queued_tokens = 0
        self._tokens_per_s: float | None = None
        self._has_work = asyncio.Event()

    @property
    def queued_tokens(self) -> int:
        """Tokens of all jobs accepted and not yet answered."""
        return self._queued_tokens

    def check_room(self, num_tokens: int = 0) -> None:
        """Refuse work that does not fit the queue.

        Raises:
            RequestTooLarge: it would not fit an empty queue either.
            Overloaded: the queue is too full now; says after how many seconds to try again.
        """
        if num_tokens > self._max_queued_tokens:
            raise RequestTooLarge(
                f"the request has {num_tokens} tokens; this server takes at most {self._max_queued_tokens} at once"
            )
        if self._queued_tokens + max(num_tokens, 1) > self._max_queued_tokens:
            raise Overloaded("the queue is full; try again later", retry_after_s=self._estimate_wait_s())

    async def submit(self, version: str, sequences: Sequence[TokenIds]) -> JobScores:
        """Queue sequences and wait for their scores; a cancelled caller leaves the queue at once.

        Args:
            version: the ensemble version to score with.
            sequences: B >= 1 non-empty sequences.

        Raises:
            ValueError: no sequences, or an empty one.
            Overloaded, RequestTooLarge: see `check_room`.
            NotReady, InternalError: the engine gave no scores.
        """
        lengths = [len(sequence) for sequence in sequences]
        if not lengths or min(lengths) == 0:
            raise ValueError("a job needs at least one sequence, and each sequence a token")
        num_tokens = sum(lengths)
        self.check_room(num_tokens)
        loop = asyncio.get_running_loop()
        job = _Job(version, sequences, lengths, loop.create_future(), loop.time())
        self._jobs[id(job)] = job
        self._queued_tokens += num_tokens
        self._has_work.set()
        try:
            return await job.future
        finally:
            self._remove(job)

    async def run(self) -> None:
        """Score passes for ever; on cancellation whatever still waits fails with NotReady."""
        try:
            while True:
                await self._has_work.wait()
                await self.step()
        finally:
            for job in list(self._jobs.values()):
                self._fail(job, NotReady("the server is shutting down"))

    async def step(self) -> None:
        """One pass: collect what waits, let the engine score it, deliver."""
        batch = self._collect()
        if not batch:
            assert not self._jobs, "jobs wait, and none was planned: this would go on for ever"
            return
        sequences = [sequence for job, start, stop in batch for sequence in job.sequences[start:stop]]
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            scores = await self._engine.score(batch[0][0].version, sequences)
            if scores.raw.ndim != 2 or scores.raw.shape[1] != len(sequences):
                raise InternalError(f"{len(sequences)} sequences got scores of shape {scores.raw.shape}")
        except Exception as error:  # whatever it is, it is these jobs' answer, and the next pass must run
            for job, _, _ in batch:
                self._fail(job, _own_copy(error))
            return
        elapsed_s, num_tokens = loop.time() - started_s, sum(map(len, sequences))
        self._measure(num_tokens, elapsed_s)
        self._observer.pass_finished(
            PassReport(0, batch[0][0].version, len(sequences), num_tokens, scores.computed_tokens, elapsed_s)
        )
        self._deliver(batch, scores)

    def _collect(self) -> list[tuple[_Job, int, int]]:
        """The next pass as (job, first sequence, end)."""
        for job in [job for job in self._jobs.values() if job.future.done()]:
            self._remove(job)  # its caller has gone
        jobs = list(self._jobs.values())
        counts = plan_pass(((job.version, job.lengths[job.num_sent :]) for job in jobs), self._token_budget)
        batch = []
        for job, count in zip(jobs, counts, strict=False):
            batch.append((job, job.num_sent, job.num_sent + count))
            if job.num_sent == 0:
                self._observer.left_queue(asyncio.get_running_loop().time() - job.queued_s)
            job.num_sent += count
        return batch

    def _deliver(self, batch: list[tuple[_Job, int, int]], scores: Scores) -> None:
        total = sum(sum(job.lengths[start:stop]) for job, start, stop in batch)
        column = tokens_before = shared_before = 0
        for job, start, stop in batch:
            # Shares of the work by tokens, rounded so that they add up to what the engine computed.
            tokens_before += sum(job.lengths[start:stop])
            shared = round(scores.computed_tokens * tokens_before / total)
            job.computed_tokens += shared - shared_before
            shared_before = shared
            job.parts.append(scores.raw[:, column : column + stop - start])
            column += stop - start
            if job.num_sent == len(job.sequences):
                if not job.future.done():
                    job.future.set_result(JobScores(np.concatenate(job.parts, axis=1), job.computed_tokens))
                self._remove(job)

    def _fail(self, job: _Job, error: Exception) -> None:
        if not job.future.done():
            job.future.set_exception(error)
        self._remove(job)

    def _remove(self, job: _Job) -> None:
        if self._jobs.pop(id(job), None) is not None:
            self._queued_tokens -= sum(job.lengths)
        if not self._jobs:
            self._has_work.clear()

    def _measure(self, num_tokens: int, elapsed_s: float) -> None:
        rate = num_tokens / max(elapsed_s, 1e-6)
        old = self._tokens_per_s
        self._tokens_per_s = rate if old is None else old + _RATE_SMOOTHING * (rate - old)

    def _estimate_wait_s(self) -> float:
        """Seconds until about everything queued now is scored, from the rate measured so far."""
        if self._tokens_per_s is None:
            return 1.0
        return float(min(max(math.ceil(self._queued_tokens / self._tokens_per_s), 1), _MAX_RETRY_AFTER_S))


def _own_copy(error: Exception) -> QuorumError:
    """An exception for one job: raised in several tasks, one object would gather all their tracebacks."""
    own = copy.copy(error) if isinstance(error, QuorumError) else InternalError(f"{type(error).__name__}: {error}")
    own.__cause__ = error
    return own
