"""A pass that raises is halved until the sequences at fault stand alone: they fail, their neighbours are scored.

    sequences  --score_apart, engine-->  PassScores: raw scores, NaN where a sequence failed

Out-of-memory is such a failure too: halves need less. Knows nothing of requests, queues or time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quorum_client.errors import InternalError, NotReady
from quorum_server.engine.messages import Scores, TokenIds

logger = logging.getLogger(__name__)

# One sequence at fault among n costs 2 log2(n) + 1 passes; where whole halves keep failing the engine is at fault, and
# the rest is not tried one by one.
_MAX_FAILURES = 64


class PassEngine(Protocol):
    """What a pass needs of an engine."""

    async def score(self, version: str, sequences: Sequence[TokenIds]) -> Scores:
        """Raw scores of B >= 1 sequences; `NotReady` where there is no engine, anything else if the pass failed."""


@dataclass(frozen=True, slots=True)
class PassScores:
    """raw: float32 (K, B). failed: the columns that the engine cannot score; NaN in `raw`."""

    raw: NDArray[np.float32]
    computed_tokens: int
    failed: frozenset[int]


async def score_apart(engine: PassEngine, version: str, sequences: Sequence[TokenIds]) -> PassScores:
    """Score B >= 1 sequences, with as many passes as it takes to set the ones at fault apart.

    Raises:
        NotReady: the engine ended or hung, or does not hold this version: no sequence is at fault.
        Exception: no sequence at all could be scored: what the first pass raised.
    """
    parts: list[tuple[int, int, Scores]] = []
    failed: set[int] = set()
    first_error: Exception | None = None
    num_failures = 0
    ranges = deque([(0, len(sequences))])
    while ranges:
        start, stop = ranges.popleft()
        try:
            scores = await engine.score(version, sequences[start:stop])
            if scores.raw.ndim != 2 or scores.raw.shape[1] != stop - start:
                raise InternalError(f"{stop - start} sequences got scores of shape {scores.raw.shape}")
            parts.append((start, stop, scores))
        except NotReady:
            raise
        except Exception as error:  # whatever it is, the neighbours' scores do not depend on it
            first_error = first_error or error
            num_failures += 1
            if stop - start == 1 or num_failures > _MAX_FAILURES:
                failed.update(range(start, stop))
                continue
            middle = (start + stop) // 2
            ranges += [(start, middle), (middle, stop)]
    if first_error is not None:
        if not parts:
            raise first_error
        logger.error("%d of %d sequences cannot be scored", len(failed), len(sequences), exc_info=first_error)
    raw = np.full((parts[0][2].raw.shape[0], len(sequences)), np.nan, dtype=np.float32)
    for start, stop, scores in parts:
        raw[:, start:stop] = scores.raw
    return PassScores(raw, sum(scores.computed_tokens for _, _, scores in parts), frozenset(failed))
