"""How many replicas: as many as the queued tokens need. Pure, but for Ray's context.

Delays, bounds and smoothing are Ray's own, of the deployment's `autoscaling_config`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

METRIC = "queued_tokens"


def replicas_for(queued_tokens: float, tokens_per_replica: float, current: int) -> int:
    """Enough that each has at most `tokens_per_replica` queued; at most one fewer than now."""
    return max(math.ceil(queued_tokens / tokens_per_replica), current - 1, 1)


class QueuedTokens:
    """Ray's autoscaling policy.

    Args:
        tokens_per_replica: queued tokens that one replica may hold: what it computes in the time that may pass.
    """

    def __init__(self, tokens_per_replica: float) -> None:
        self._tokens_per_replica = tokens_per_replica

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The replicas that are wanted, and no state."""
        queued = sum((ctx.aggregated_metrics or {}).get(METRIC, {}).values())
        return replicas_for(queued, self._tokens_per_replica, ctx.current_num_replicas), {}
