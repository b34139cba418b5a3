"""One request in the queue: its units that wait, its scores that have come, and its one answer.

    sequences  --Job.take-->  units in passes  --Job.deliver-->  JobScores

Bookkeeping only: knows nothing of engines or passes, and decides nothing.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from quorum_client.errors import InternalError, QuorumError
from quorum_server.engine.messages import TokenIds
from quorum_server.packing import Unit, Waiting


@dataclass(frozen=True, slots=True)
class JobScores:
    """What a request gets.

    raw: float32 (K, B), in the order submitted; NaN in the columns `failed`, which the engine could not score; K is 0
    where it could score none.
    computed_tokens: the request's share of the engine's work.
    """

    raw: NDArray[np.float32]
    computed_tokens: int
    failed: frozenset[int]


@dataclass(frozen=True, slots=True)
class Part:
    """A job's part of a pass. was_lost: an engine was lost with it already."""

    job: Job
    units: Sequence[Unit]
    was_lost: bool = False

    @property
    def indices(self) -> list[int]:
        """Places of its sequences in the job, in the order of the pass."""
        return [index for unit in self.units for index in unit.indices]

    @property
    def num_tokens(self) -> int:
        """Tokens that an engine computes for it, at most."""
        return sum(unit.num_tokens for unit in self.units)

    def halves(self) -> list[Part]:
        """The part in two, of two sequences at least: whole units where there are several."""
        middle = len(self.units) // 2
        if middle:
            return [replace(self, units=self.units[:middle]), replace(self, units=self.units[middle:])]
        (unit,) = self.units
        middle = len(unit.indices) // 2
        halves = []
        for indices in (unit.indices[:middle], unit.indices[middle:]):
            alone = sum(len(self.job.sequences[index]) for index in indices)
            halves.append(replace(self, units=[Unit(indices, min(unit.num_tokens, alone))]))
        return halves


@dataclass(eq=False, slots=True)
class Job:
    """A request in the queue.

    version: the ensemble's. token_budget: of a pass of it. sequences: B. waiting: units not sent yet. suspects: parts
    that an engine was lost with, and that wait to be sent once more. queued_s: when it came. served_tokens: sent so
    far. num_answered: sequences. num_lost_alone: engines that were lost with nothing but a part of it.
    """

    version: str
    token_budget: int
    sequences: Sequence[TokenIds]
    waiting: deque[Unit]
    future: asyncio.Future[JobScores]
    queued_s: float
    suspects: deque[Part] = field(default_factory=deque)
    served_tokens: int = 0
    num_answered: int = 0
    computed_tokens: int = 0
    raw: NDArray[np.float32] | None = None
    failed: set[int] = field(default_factory=set)
    num_lost_alone: int = 0

    @property
    def as_waiting(self) -> Waiting:
        """Its part in the plan of a pass."""
        return Waiting(self.version, self.token_budget, (unit.num_tokens for unit in self.waiting), self.served_tokens)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that are in no pass now and not answered."""
        return sum(unit.num_tokens for unit in self.waiting) + sum(part.num_tokens for part in self.suspects)

    def take(self, count: int) -> Part:
        """The next `count` units, which no longer wait."""
        part = Part(self, [self.waiting.popleft() for _ in range(count)])
        self.served_tokens += part.num_tokens
        return part

    def deliver(self, indices: Sequence[int], raw: NDArray[np.float32], failed: Sequence[int], computed: int) -> None:
        """Take in scores, float32 (K, len(indices)) with NaN for those `failed`; the last ones answer the request."""
        if self.raw is None:
            self.raw = np.full((raw.shape[0], len(self.sequences)), np.nan, dtype=np.float32)
        self.raw[:, list(indices)] = raw
        self.failed.update(failed)
        self._count(len(indices), computed)

    def deliver_failure(self, indices: Sequence[int]) -> None:
        """Take in that none of these sequences can be scored: asking again would not help."""
        self.failed.update(indices)
        self._count(len(indices), 0)

    def _count(self, num_sequences: int, computed_tokens: int) -> None:
        self.num_answered += num_sequences
        self.computed_tokens += computed_tokens
        if self.num_answered < len(self.sequences):
            return
        if not self.future.done():
            raw = np.empty((0, len(self.sequences)), np.float32) if self.raw is None else self.raw
            self.future.set_result(JobScores(raw, self.computed_tokens, frozenset(self.failed)))

    def fail(self, error: Exception) -> None:
        """Answer with an error of its own: raised in several tasks, one object would gather all their tracebacks."""
        if self.future.done():
            return
        own = copy.copy(error) if isinstance(error, QuorumError) else InternalError(f"{type(error).__name__}: {error}")
        own.__cause__ = error
        self.future.set_exception(own)
