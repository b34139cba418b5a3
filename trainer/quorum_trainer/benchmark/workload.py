"""What the contestants train on: pairs of token ids with the lengths of real dialogues.

    seed  --draw_pairs-->  EncodedPair

The texts do not matter to the time, their lengths do.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from quorum_trainer.data import EncodedPair

# Fitted by eye to tokens of human dialogues cut at 256: median about 105, a long tail.
_MEDIAN, _SIGMA, _SHORTEST = 105, 0.65, 12
LONGEST = 256


def draw_pairs(num_pairs: int, vocab_size: int, *, longest: int = LONGEST, seed: int = 0) -> list[EncodedPair]:
    """Pairs of random token ids whose lengths are log-normal; both sides of a pair share most of their length."""
    draw = random.Random(seed)  # noqa: S311 - lengths, not secrets
    pairs = []
    for _ in range(num_pairs):
        prompt = _MEDIAN * math.exp(_SIGMA * draw.gauss(0, 1))
        sides = []
        for _ in range(2):
            length = min(longest, max(_SHORTEST, round(prompt * (0.75 + 0.5 * draw.random()))))
            sides.append([draw.randrange(1000 % vocab_size, vocab_size) for _ in range(length)])
        pairs.append(EncodedPair(sides[0], sides[1], "drawn", 0, 0))
    return pairs


def num_tokens(pairs: Sequence[EncodedPair]) -> int:
    """Tokens of all sides."""
    return sum(pair.num_tokens for pair in pairs)
