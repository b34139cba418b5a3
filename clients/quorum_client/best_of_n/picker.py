"""Best-of-N over many prompts: candidates from a generator, ranked by a Quorum server, some prompts at once.

    [PromptTask]  --Picker: Generator.chat, AsyncClient.rank-->  Record, each as soon as it is done

Knows no files; `quorum best-of-n` writes the records.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace

from quorum_client._request import RewardKwargs
from quorum_client.async_client import AsyncClient
from quorum_client.best_of_n.prompts import PromptTask
from quorum_client.best_of_n.record import Asked, Record, make_record
from quorum_client.errors import GeneratorRefused, InvalidRequest
from quorum_client.generation import Generation, Generator, SamplingOptions, derive_seed
from quorum_client.types import Center, Prompt, RankResponse

DEFAULT_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Picker:
    """How a prompt's best candidate is found.

    Attributes:
        ranker: a client of the Quorum server.
        options: mode, beta, ensemble, …; what is left out is the server's default.
        center: see POST /rank; None is its default, and "none" for a single candidate, which has no group.
        generator: who writes candidates; None where all are given.
        asked: with which model and sampling.
    """

    ranker: AsyncClient
    options: RewardKwargs
    center: Center | None = None
    generator: Generator | None = None
    asked: Asked | None = None

    async def pick(self, task: PromptTask) -> Record:
        """One prompt.

        A prompt that the generator refuses (too long for it) gets a record that says so, without a pick.

        Raises:
            InvalidRequest: the task has no candidates, and there is no generator.
            QuorumError: generator or server cannot be reached, are set up otherwise, or refuse the options.
        """
        if task.candidates is not None:
            return make_record(task, task.candidates, await self._rank(task, task.candidates))
        if self.generator is None or self.asked is None:
            raise InvalidRequest(f"prompt {task.prompt_id}: has no candidates, and there is no generator to write them")
        seed = derive_seed(self.asked.seed, task.prompt_id)
        try:
            generation = await self._generate(task, seed)
        except GeneratorRefused as error:
            return make_record(task, (), None, asked=self.asked, seed=seed, error=error)
        texts = [one.text for one in generation.completions]
        answer = await self._rank(task, texts)
        return make_record(task, texts, answer, generation=generation, asked=self.asked, seed=seed)

    async def _generate(self, task: PromptTask, seed: int) -> Generation:
        assert self.generator is not None
        assert self.asked is not None
        sampling = replace(self.asked.sampling, seed=seed)
        return await self.generator.chat(task.prompt, model=self.asked.model, sampling=sampling)

    async def _rank(self, task: PromptTask, texts: Sequence[str]) -> RankResponse:
        center = "none" if self.center is None and len(texts) == 1 else self.center
        return await self.ranker.rank(task.prompt, texts, center=center, **self.options)


async def best_of_n(
    tasks: Iterable[PromptTask], picker: Picker, *, at_once: int = DEFAULT_AT_ONCE
) -> AsyncIterator[Record]:
    """Records in the order in which prompts are done; no more than `at_once` are under way.

    Raises:
        QuorumError: as `Picker.pick`; what was done before has been given out, what is under way is cancelled.
    """
    if at_once < 1:
        raise InvalidRequest("at_once must be >= 1")
    waiting = iter(tasks)
    running: set[asyncio.Task[Record]] = set()
    try:
        while True:
            while len(running) < at_once and (task := next(waiting, None)) is not None:
                running.add(asyncio.create_task(picker.pick(task)))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            # Those that are done first: what a later failure stops must not take them with it.
            for one in sorted(done, key=lambda task: task.exception() is not None):
                yield one.result()
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def pick_best(
    prompt: Prompt,
    *,
    ranker: AsyncClient,
    generator: Generator,
    model: str,
    sampling: SamplingOptions,
    center: Center | None = None,
    **options: object,
) -> Record:
    """The best of `sampling.n` answers to one prompt, with all others and their scores.

    async with Generator(vllm_url) as generator, AsyncClient(quorum_url) as ranker:
        record = await pick_best("Why is the sky blue?", ranker=ranker, generator=generator, model="base",
                                 sampling=SamplingOptions(n=16, seed=0), mode="lcb")
        print(record.picked)

    Args:
        prompt: one user turn, or messages.
        ranker: client of the Quorum server.
        generator: client of the generator.
        model: name of the generator's model.
        sampling: n and the rest; `seed` is that of the run, from which the prompt's own is derived.
        center: see `Picker`.
        options: as of `AsyncClient.rank`.

    Raises:
        QuorumError: as `Picker.pick`.
    """
    asked = Asked(model, sampling, sampling.seed or 0)
    picker = Picker(ranker, options, center, generator, asked)  # type: ignore[arg-type]
    return await picker.pick(PromptTask("0", prompt))
