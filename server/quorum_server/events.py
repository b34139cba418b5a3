"""What happens inside the service, told to whoever watches: one call a happening, plain values.

    scheduler, service, registry, engines  --Observer-->  metrics, logs

The only way from the service's core to its metrics; the core knows no metric, and an observer decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quorum_client.types import CompareListResponse, CompareResponse, RankResponse, ScoreResponse
from quorum_model.scoring import PreparedComparisons, PreparedRewards, ScoringContext

Rejection = Literal[
    "queue_tokens", "queue_bytes", "too_large", "draining", "deadline", "disconnected", "unauthorized", "forbidden"
]
"""Why a request was turned away although nothing was wrong with it but its size, its time or its key."""

RestartReason = Literal["died", "hung"]


@dataclass(frozen=True, slots=True)
class PassReport:
    """One pass of an engine.

    engine: its place in `--devices`. submitted_tokens, computed_tokens: in the pass, and what the engine computed (less
    where work was shared). elapsed_s: from sent to answered; a part of it may be spent behind the engine's other pass.
    """

    engine: int
    version: str
    num_sequences: int
    submitted_tokens: int
    computed_tokens: int
    elapsed_s: float


class Observer:
    """Watches the service; every method here does nothing. Called on the event loop: an override must be quick."""

    def tokenized(self, ensemble: str, elapsed_s: float) -> None:
        """A request for the ensemble of this name has become token ids."""

    def left_queue(self, waited_s: float) -> None:
        """The first sequences of a request went to an engine, so long after it was queued."""

    def pass_finished(self, report: PassReport) -> None:
        """An engine answered a pass with scores."""

    def answered(
        self,
        context: ScoringContext,
        prepared: PreparedRewards | PreparedComparisons,
        raw: NDArray[np.floating[Any]],
        response: ScoreResponse | RankResponse | CompareResponse | CompareListResponse,
    ) -> None:
        """A request got this answer from the ensemble of `context`.

        Args:
            context: the ensemble's.
            prepared: the request, as it was finished.
            raw: scores of its sequences before calibration, shape (K, S).
            response: the answer.
        """

    def rejected(self, reason: Rejection) -> None:
        """A request was refused, or left before it was scored."""

    def swap_finished(self, ensemble: str, version: str | None, elapsed_s: float, error: str | None) -> None:
        """A load or hot swap ended: with this version serving, or (version None) with an error's code."""

    def engine_restarted(self, engine: int, reason: RestartReason) -> None:
        """An engine was found dead or hung, and a new process takes its place."""

    def generated(self, elapsed_s: float, num_candidates: int, num_tokens: int) -> None:
        """The generator wrote candidates for a request; tokens as it counts them, 0 where it does not."""

    def generation_failed(self, code: str) -> None:
        """A request got no candidates, with an error of this code."""

    def picked(self, std: float | None, num_failed: int) -> None:
        """A candidate was picked whose score has this std over members; so many others had no score."""
