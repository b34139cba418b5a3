"""What travels through a step: prompts, what the policy answered, what that was worth.

    PromptRow  --generator-->  Draw  --reward server-->  Reward;  together a Sample

Knows no torch, no HTTP and no files.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from quorum_client.types import Prompt


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt. index: its place in the file. token_ids: in the policy's template, up to where the answer begins.

    reference: an answer to compare with, where the file has one.
    """

    index: int
    prompt: Prompt
    token_ids: tuple[int, ...]
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Draw:
    """One completion. token_ids: (R,), R >= 1, with the EOS that ended it. logprobs: (R,), the generator's own, nats,
    at temperature 1. ended: closed by an EOS, and not cut short. text: without special tokens.
    """  # noqa: D205

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool
    text: str


@dataclass(frozen=True, slots=True)
class Reward:
    """What a completion is worth, or why nobody can say.

    score: by the mode, what is learned from. mean, std: over members; std is None with one member. version: of the
    ensemble. error: the code of the reason where there is no score; all numbers are None then.
    """

    score: float | None
    mean: float | None = None
    std: float | None = None
    version: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion with its reward. place: the prompt's number in the step, from 0; number: the sample's of it.

    gold: the second reward, where one is measured.
    """

    place: int
    number: int
    row: PromptRow
    draw: Draw
    reward: Reward
    gold: Reward | None = None


def prompts_of_step(num_prompts: int, step: int, per_step: int, seed: int) -> list[int]:
    """Indices of a step's prompts: the set in a new order every epoch, a function of seed and step alone.

    Args:
        num_prompts: in the set.
        step: from 0.
        per_step: prompts a step.
        seed: of the run.
    """
    chosen: list[int] = []
    position = step * per_step
    while len(chosen) < per_step:
        epoch, offset = divmod(position, num_prompts)
        order = list(range(num_prompts))
        random.Random(f"{seed}/prompts/{epoch}").shuffle(order)  # noqa: S311 - an order, not a secret
        taken = order[offset : offset + per_step - len(chosen)]
        chosen += taken
        position += len(taken)
    return chosen
