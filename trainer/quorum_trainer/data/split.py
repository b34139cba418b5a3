"""Which pairs are kept out of training: by prompt, reproducibly.

    list[PreferencePair] (or whatever else has a prompt)  --split_held_out-->  (train, held out)

Pure: knows no files and no models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from quorum_trainer.data.pairs import Prompted

PromptedT = TypeVar("PromptedT", bound=Prompted)


def split_held_out(pairs: list[PromptedT], share: float, seed: int) -> tuple[list[PromptedT], list[PromptedT]]:
    """Split by prompt: every pair of a prompt lands on one side, and so do prompts that differ in spelling alone.

    Args:
        pairs: all of one source.
        share: of the prompts, held out.
        seed: decides which.

    Returns:
        (train, held out), each in the order of `pairs`.
    """
    folds = assign_folds(pairs, num_folds=1000, seed=seed)
    threshold = round(1000 * share)
    train = [pair for pair, fold in zip(pairs, folds, strict=True) if fold >= threshold]
    held_out = [pair for pair, fold in zip(pairs, folds, strict=True) if fold < threshold]
    return train, held_out


def assign_folds(pairs: Sequence[Prompted], num_folds: int, seed: int) -> list[int]:
    """A fold for every pair, by its prompt alone (`loose_prompt_key`); folds of nearly equal numbers of prompts.

    Which fold does not depend on the order of `pairs`.
    """
    groups = [pair.loose_prompt_key() for pair in pairs]
    # A group is ranked by its first spelling: where no two prompts differ in spelling alone, the folds are those of
    # the prompts as they are written.
    spellings: dict[str, str] = {}
    for pair, group in zip(pairs, groups, strict=True):
        key = pair.prompt_key()
        spellings[group] = min(spellings.get(group, key), key)
    prompts = sorted(spellings, key=spellings.__getitem__)
    random.Random(seed).shuffle(prompts)  # noqa: S311 - a split, not a secret
    fold_of = {group: index * num_folds // len(prompts) for index, group in enumerate(prompts)}
    return [fold_of[group] for group in groups]


def take(pairs: list[PromptedT], most: int | None, seed: int) -> list[PromptedT]:
    """At most `most` pairs, drawn at random, in their order."""
    if most is None or len(pairs) <= most:
        return pairs
    chosen = sorted(random.Random(seed).sample(range(len(pairs)), most))  # noqa: S311 - a sample, not a secret
    return [pairs[index] for index in chosen]
