"""A run put together from its config: models, servers, folders; and what it leaves behind.

PPOConfig  --run-->  OUT/ (adapter in PEFT's format, log.jsonl, summary.json, curves.png), PPOResult
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from quorum_client.async_client import AsyncClient
from quorum_client.errors import QuorumError
from quorum_client.generation import Generator
from quorum_trainer.config import ConfigError
from quorum_trainer.data.read import hash_file
from quorum_trainer.ppo.config import PPOConfig, RewardOptions
from quorum_trainer.ppo.generator import VllmSampler
from quorum_trainer.ppo.learner import Learner
from quorum_trainer.ppo.loop import Loop, Parts, Track
from quorum_trainer.ppo.policy import Policy, load_policy
from quorum_trainer.ppo.prompts import load_prompts
from quorum_trainer.ppo.reward import RewardSource
from quorum_trainer.ppo.rollout import Say, Sources
from quorum_trainer.ppo.summary import draw_curves, summarise
from quorum_trainer.runs.run_folder import RunFolder, write_folder

_RETRIES = 100_000
"""As many as fit into the deadline."""
_START_S = 60.0
"""For the first word of each server: an address that is wrong should not take a deadline made for long outages."""


@dataclass(frozen=True, slots=True)
class PPOResult:
    """folder: what was written. summary: see `summarise`."""

    folder: Path
    summary: dict[str, Any]


async def run(
    config: PPOConfig,
    target: Path,
    *,
    device: torch.device,
    folder: RunFolder,
    resume: bool,
    say: Say = print,
    track: Track = lambda figures, step: None,  # noqa: ARG005
) -> PPOResult:
    """Train, and write what was learned to `target`.

    Args:
        config: checked.
        target: must not exist.
        device: of the trainer; the servers have theirs.
        folder: of the run; checkpoints are written after every step.
        resume: go on with the run that is there.
        say: is told of progress.
        track: is told of every step's figures.

    Raises:
        ConfigError: `target` exists, the run folder holds another run, or policy and prompts do not fit together.
        DataError: the prompts cannot be used.
        RunStopped, TrainingInterrupted, TrainingDiverged: see `Loop.run`.
    """
    if target.exists():  # noqa: ASYNC240 - nothing else runs yet
        raise ConfigError(f"{target} exists already; choose another --out")
    folder.claim(config, {"prompts": hash_file(Path(config.prompts.path))}, resume=resume)
    if not resume:
        _clear(folder.path)
    policy = load_policy(config.policy, with_value=config.estimator == "gae", seed=config.seed, device=device)
    _check_lengths(config, policy)
    rows, too_long = load_prompts(config.prompts, policy.tokenizer, max_tokens=config.prompts.max_tokens)
    say(f"{len(rows):,} prompts ({too_long:,} longer than {config.prompts.max_tokens} tokens left out)")
    async with AsyncExitStack() as stack:
        generator = await stack.enter_async_context(
            Generator(
                config.generator.url,
                api_key=os.environ.get("QUORUM_GENERATOR_API_KEY"),
                deadline_s=config.generator.deadline_s,
                max_retries=_RETRIES,
                max_in_flight=config.generator.max_in_flight,
            )
        )
        await _check_generator(generator, config)
        sampler = VllmSampler(
            generator, config.generator.model, config.rollout, config.name, config.seed, policy.end_ids
        )
        reward, std_limit = await open_reward(config.reward, config.name, stack)
        gold = None if config.gold is None else (await open_reward(config.gold, config.name, stack))[0]
        sources = Sources(sampler, reward, gold, folder.path / "journal", config.generator.max_in_flight)
        loop = Loop(Parts(config, policy, Learner(policy, config), rows, sources, folder, std_limit, say, track))
        if loop.log.lines:
            reward.expect(loop.log.lines[-1]["versions"][-1])
            say(f"goes on after step {loop.step} of {config.steps}")
        await loop.run()
    return _finish(config, policy, loop, target, folder)


async def _check_generator(generator: Generator, config: PPOConfig) -> None:
    options = config.generator
    try:
        served = await generator.models(deadline_s=min(_START_S, options.deadline_s))
    except QuorumError as error:
        raise ConfigError(f"generator: {error.code}: {error.message}") from error
    if options.model not in served:
        raise ConfigError(f"generator: {options.url} serves {', '.join(served) or 'nothing'}, not {options.model}")


async def open_reward(options: RewardOptions, name: str, stack: AsyncExitStack) -> tuple[RewardSource, float | None]:
    """The source, and the 99th percentile of std that its ensemble had on the data that it was calibrated on."""
    http = await stack.enter_async_context(httpx.AsyncClient(headers={"x-quorum-run": name}))
    client = AsyncClient(
        options.url,
        api_key=os.environ.get("QUORUM_API_KEY"),
        deadline_s=options.deadline_s,
        max_retries=_RETRIES,
        http_client=http,
    )
    try:
        listed = await client.ensembles(deadline_s=min(_START_S, options.deadline_s))
    except QuorumError as error:
        raise ConfigError(f"reward: {error.code}: {error.message}") from error
    wanted = (options.ensemble or "").partition("@")[0]
    named = [one for one in listed if one.name == wanted or (not wanted and len(listed) == 1)]
    return RewardSource(client, options), named[0].std_quantiles.get("0.99") if named else None


def _clear(folder: Path) -> None:
    """A finished run whose results were thrown away leaves journal and checkpoint, which are none of the next one's."""
    for name in ("journal", "adapters", "policies"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("log.jsonl", "checkpoint.safetensors"):
        (folder / name).unlink(missing_ok=True)


def _check_lengths(config: PPOConfig, policy: Policy) -> None:
    longest, limit = config.prompts.max_tokens + config.rollout.max_new_tokens, policy.max_positions
    if limit is not None and longest > limit:
        raise ConfigError(f"prompts.max_tokens + rollout.max_new_tokens is {longest}: the policy has {limit} positions")


def _finish(config: PPOConfig, policy: Policy, loop: Loop, target: Path, folder: RunFolder) -> PPOResult:
    lines = loop.log.lines
    summary = summarise(lines)

    def write(place: Path) -> None:
        policy.write_adapter(place)
        policy.tokenizer.save_pretrained(place)
        (place / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        (place / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        draw_curves(lines, f"{config.name}: {config.estimator}", place / "curves.png")

    write_folder(target, write)
    shutil.rmtree(folder.path / "adapters", ignore_errors=True)
    (folder.path / "checkpoint.safetensors").unlink(missing_ok=True)
    folder.close()
    return PPOResult(target, summary)
