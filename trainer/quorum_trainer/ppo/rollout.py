"""One step's completions with their rewards: each prompt scored while others are still being written.

    prompts of the step  --Sampler-->  draws  --Rewarder-->  rewards;  all through the Journal  -->  [Sample]

What the journal holds already is not asked for again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quorum_trainer.ppo.generator import Sampler
from quorum_trainer.ppo.journal import Journal, JournalCorrupt, Kind, open_step
from quorum_trainer.ppo.reward import Rewarder
from quorum_trainer.ppo.samples import Draw, PromptRow, Reward, Sample

_SILENCE_S = 60.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Rollout:
    """A step's samples, in the order of (place, number) whatever arrived first.

    elapsed_s: from the first call to the last answer, of this process. busy_s: seconds of all calls together, by
    kind (`sample`, `reward`, `gold`, `reference`), those of an earlier process too. scoring_alone_s: from the last
    completion to the last reward: what scoring adds to the rollout.
    """

    samples: list[Sample]
    elapsed_s: float
    scoring_alone_s: float
    busy_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a rollout comes from. gold: a second opinion that is measured only. at_once: prompts under way."""

    sampler: Sampler
    reward: Rewarder
    gold: Rewarder | None
    journal: Path
    at_once: int


async def roll_out(
    sources: Sources, rows: Sequence[PromptRow], step: int, handle: str, adapter: str, say: Say
) -> Rollout:
    """All samples of a step.

    Args:
        sources: generator, reward servers, journals.
        rows: the step's prompts, by place.
        step: from 0.
        handle: of the published adapter.
        adapter: sha256 of its weights, for the journal.
        say: is told where nothing has been heard for a minute.

    Raises:
        QuorumError: a server is away beyond its deadline, or refuses; what was heard before is in the journal.
        OSError: the journal cannot be written.
    """
    started_s = time.perf_counter()
    turns = asyncio.Semaphore(sources.at_once)
    with open_step(sources.journal, step) as journal:
        worker = _Worker(sources, journal, step, handle, adapter)

        async def one(place: int, row: PromptRow) -> list[Sample]:
            async with turns:
                return await worker.samples(place, row)

        silence = asyncio.create_task(_tell_of_silence(worker, say))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(place, row)) for place, row in enumerate(rows)]
        except ExceptionGroup as failures:
            raise _first(failures) from failures
        finally:
            silence.cancel()
        samples = [sample for task in tasks for sample in task.result()]
        ended_s = time.perf_counter()
        alone_s = ended_s - max(worker.last_draws_s, started_s)
        return Rollout(samples, ended_s - started_s, alone_s, dict(journal.heard.seconds))


async def _tell_of_silence(worker: _Worker, say: Say) -> None:
    while True:
        await asyncio.sleep(_SILENCE_S)
        quiet_s = time.perf_counter() - worker.last_heard_s
        if quiet_s >= _SILENCE_S:
            say(f"step {worker.step + 1}: nothing heard for {quiet_s:.0f} s; still asking generator and reward server")


def _first(failures: ExceptionGroup) -> Exception:
    first: Exception = failures.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first


class _Worker:
    def __init__(self, sources: Sources, journal: Journal, step: int, handle: str, adapter: str) -> None:
        self._sources = sources
        self._journal = journal
        self.step = step
        self._handle = handle
        self._adapter = adapter
        self.last_draws_s = 0.0
        self.last_heard_s = time.perf_counter()

    async def samples(self, place: int, row: PromptRow) -> list[Sample]:
        draws = await self._draws(place, row)
        reference = await self._reference(place, row)
        gold: list[Reward] | list[None] = [None] * len(draws)
        async with asyncio.TaskGroup() as group:
            paid = group.create_task(self._rewards("reward", self._sources.reward, place, row, draws, reference))
            if self._sources.gold is not None:
                judged = group.create_task(self._rewards("gold", self._sources.gold, place, row, draws, reference))
        if self._sources.gold is not None:
            gold = judged.result()
        return [
            Sample(place, number, row, draw, reward, second)
            for number, (draw, reward, second) in enumerate(zip(draws, paid.result(), gold, strict=True))
        ]

    async def _draws(self, place: int, row: PromptRow) -> list[Draw]:
        heard = self._journal.heard
        if place not in heard.draws:
            started_s = time.perf_counter()
            draws = await self._sources.sampler.sample(row, self._handle, step=self.step, place=place)
            self.last_heard_s = self.last_draws_s = time.perf_counter()
            elapsed_s = self.last_draws_s - started_s
            self._journal.add_draws(place, row.index, draws, adapter=self._adapter, elapsed_s=elapsed_s)
        elif heard.adapters[place] != self._adapter:
            raise JournalCorrupt(f"step {self.step + 1}: completions in the journal are of other weights; begin anew")
        return heard.draws[place]

    async def _reference(self, place: int, row: PromptRow) -> str | None:
        needed = [source for source in (self._sources.reward, self._sources.gold) if source is not None]
        if row.reference is not None or not any(source.needs_reference for source in needed):
            return row.reference
        heard = self._journal.heard
        if place not in heard.references:
            started_s = time.perf_counter()
            text = await self._sources.sampler.greedy(row)
            self._journal.add_reference(place, text, elapsed_s=time.perf_counter() - started_s)
        return heard.references[place]

    async def _rewards(
        self, kind: Kind, source: Rewarder, place: int, row: PromptRow, draws: list[Draw], reference: str | None
    ) -> list[Reward]:
        heard = self._journal.heard.rewards[kind]
        if place not in heard:
            started_s = time.perf_counter()
            rewards = await source.score(row, draws, reference)
            self.last_heard_s = time.perf_counter()
            self._journal.add_rewards(kind, place, rewards, elapsed_s=self.last_heard_s - started_s)
        return heard[place]
