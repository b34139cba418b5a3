"""What callers make of scored results when each must have a number: adapters here, other systems' routes in the server.

    ScoreResult, ...  --scores_of-->  numbers | the first error

Knows no HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from quorum_client.errors import InvalidRequest
from quorum_client.types import ScoreResult


def scores_of(results: Sequence[ScoreResult]) -> list[float]:
    """The rewards, in order.

    Raises:
        InvalidRequest: an item has no score; which one and why, under the item's own code. Asking again would not help.
    """
    for index, result in enumerate(results):
        if result.error is not None:
            failure = InvalidRequest(f"item {index}: {result.error.message}")
            failure.code = result.error.code
            raise failure
    return [result.score for result in results if result.score is not None]


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without overflow: a score between 0 and 1."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))
