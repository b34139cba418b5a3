"""What callers make of scored results when each must have a number: adapters here, other systems' routes in the server.

    ScoreResult, ...  --scores_of-->  numbers | the first error

Knows no HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from quorum_client.errors import InternalError, InvalidRequest
from quorum_client.types import ItemError, ScoreResult

# Codes for which the caller can do nothing: the engine's numbers are none, or it failed.
_DEFECTS = frozenset({"non_finite_score", "scoring_failed"})


def scores_of(results: Sequence[ScoreResult]) -> list[float]:
    """The rewards, in order.

    Raises:
        InvalidRequest: an item could not be scored; which one and why, under the item's own code.
        InternalError: the server had no finite score for an item.
    """
    for index, result in enumerate(results):
        if result.error is not None:
            raise _as_request_error(index, result.error)
    return [result.score for result in results if result.score is not None]


def _as_request_error(index: int, error: ItemError) -> InvalidRequest | InternalError:
    message = f"item {index}: {error.message}"
    failure = InternalError(message) if error.code in _DEFECTS else InvalidRequest(message)
    if error.code not in _DEFECTS:
        failure.code = error.code
    return failure


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without overflow: a score between 0 and 1."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))
