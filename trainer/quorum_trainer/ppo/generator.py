"""The policy as a vLLM server samples from it: adapters published, completions drawn.

    adapter folder  --publish-->  a model name  --sample-->  [Draw];  --retire--> gone

Each published adapter has a name that was never used: vLLM's prefix cache goes by name and path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from pathlib import Path
from typing import Protocol

from quorum_client.errors import GenerationInvalid, ModelNotFound, QuorumError
from quorum_client.generation import Completion, Generator, SamplingOptions, derive_seed
from quorum_client.generation.adapters import load_adapter, unload_adapter
from quorum_trainer.ppo.config import RolloutOptions
from quorum_trainer.ppo.samples import Draw, PromptRow


class Sampler(Protocol):
    """Where completions come from. A handle is what `publish` gave."""

    async def publish(self, folder: Path, step: int) -> str:
        """Make an adapter ready to be sampled from."""

    async def retire(self, handle: str) -> None:
        """It is no longer needed."""

    async def sample(self, row: PromptRow, handle: str, *, step: int, place: int) -> list[Draw]:
        """The prompt's completions; where step and place are those of an earlier call, the same ones if it can."""

    async def greedy(self, row: PromptRow) -> str:
        """The reference policy's own answer."""


class VllmSampler:
    """A vLLM server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True.

    Args:
        generator: its client.
        model: under which name it serves the policy's backbone.
        rollout: how to sample.
        name: of the run, the beginning of its adapters' names.
        seed: of the run.
        end_ids: tokens that end a completion.
    """

    def __init__(
        self, generator: Generator, model: str, rollout: RolloutOptions, name: str, seed: int, end_ids: frozenset[int]
    ) -> None:
        self._generator = generator
        self._model = model
        self._rollout = rollout
        self._prefix = f"{name}-{secrets.token_hex(3)}"  # a run that is resumed meets a server that remembers it
        self._seed = seed
        self._end_ids = end_ids
        self._folders: dict[str, Path] = {}
        self._loading = asyncio.Lock()

    async def publish(self, folder: Path, step: int) -> str:
        """Load it under a new name. Raises: QuorumError: the server cannot, or is away."""
        handle = f"{self._prefix}-{step:06d}"
        self._folders[handle] = path = Path(os.path.abspath(folder))  # noqa: ASYNC240 - asks no disk
        await load_adapter(self._generator, handle, path)
        return handle

    async def retire(self, handle: str) -> None:
        """Unload it; a server that was started anew has forgotten it already."""
        self._folders.pop(handle, None)
        with contextlib.suppress(QuorumError):
            await unload_adapter(self._generator, handle, deadline_s=30)

    async def sample(self, row: PromptRow, handle: str, *, step: int, place: int) -> list[Draw]:
        """As `Sampler.sample`, by a seed of its own for each prompt of each step.

        Raises:
            GenerationInvalid: an answer without token ids or log-probabilities.
            QuorumError: as `Generator.complete`.
        """
        options = SamplingOptions(
            n=self._rollout.samples,
            temperature=self._rollout.temperature,
            max_tokens=self._rollout.max_new_tokens,
            seed=derive_seed(self._seed, step, place),
            token_ids=True,
            logprobs=True,
        )
        try:
            generation = await self._generator.complete(row.token_ids, model=handle, sampling=options)
        except ModelNotFound:
            await self._publish_again(handle)
            generation = await self._generator.complete(row.token_ids, model=handle, sampling=options)
        return [self._draw(one) for one in generation.completions]

    async def _publish_again(self, handle: str) -> None:
        """The server was started anew, and remembers neither adapters nor what it computed with them."""
        async with self._loading:
            if handle not in await self._generator.models():
                await load_adapter(self._generator, handle, self._folders[handle])

    async def greedy(self, row: PromptRow) -> str:
        """By the backbone alone, at temperature 0. Raises: as `sample`."""
        options = SamplingOptions(temperature=0.0, max_tokens=self._rollout.max_new_tokens)
        generation = await self._generator.complete(row.token_ids, model=self._model, sampling=options)
        return generation.completions[0].text

    def _draw(self, completion: Completion) -> Draw:
        ids, logprobs = completion.token_ids, completion.logprobs
        if not ids or logprobs is None or len(logprobs) != len(ids):
            raise GenerationInvalid("the generator gave no token ids with their log-probabilities: is it vLLM?")
        return Draw(ids, logprobs, ids[-1] in self._end_ids, completion.text)
