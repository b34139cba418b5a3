"""What every panel's and recording rule's query must return, worked out from the series that the script implies.

Written from what a panel promises, not from its PromQL.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.deploy.live.book import Vector, Window, combine, divide, quantile, subtract, sum_by

RATE_S = 300.0
"""For $__rate_interval; the rules' own 5m."""
_RUN = ("ensemble", "version", "run")


def panels(window: Window) -> dict[str, list[Vector]]:
    """By title: a vector a query."""
    score = mean_score(window, *_RUN)
    std, penalty = mean(window, "quorum_score_std", *_RUN), mean(window, "quorum_lcb_penalty", *_RUN)
    rate = partial_rate(window)
    submitted, computed = (rate(f"quorum_{name}_tokens_total", "ensemble") for name in ("submitted", "computed"))
    return {
        "Score, lcb and std, mean over items": [score, subtract(score, penalty), std],
        "Std over members, mean": [std],
        "Mean - lcb, mean": [penalty],
        "Items beyond the 99th percentile of std": [exceeded(window, *_RUN)],
        "Std over members": [buckets(window, "quorum_score_std")],
        "Mean - lcb": [buckets(window, "quorum_lcb_penalty")],
        "Calibrated score": [buckets(window, "quorum_calibrated_score")],
        "Disagreement of members' orders": [buckets(window, "quorum_rank_disagreement")],
        "Drift of the score (KS)": [window.now("quorum_score_drift")],
        "Std of picked candidates": [buckets(window, "quorum_picked_std")],
        "Requests a second": [rate("quorum_requests_total", "route", "status")],
        "Latency by route": [quantiles(window, q, "quorum_request_seconds", "route") for q in (0.5, 0.99)],
        "Latency by phase, p99": [
            quantiles(window, 0.99, f"quorum_{name}_seconds") for name in ("tokenize", "queue", "forward", "generation")
        ],
        "Rejections": [rate("quorum_rejections_total", "reason")],
        "Queued tokens": [window.now("quorum_queued_tokens")],
        "In flight": [window.now("quorum_requests_in_flight")],
        "Tokens of a pass": [buckets(window, "quorum_batch_tokens")],
        "Tokens a second": [submitted, computed],
        "Saved by sharing": [combine(lambda a, b: 1 - b / a, submitted, computed)],
        # All of them: their series are younger than the window.
        "Restarts": [sum_by(window.now("quorum_engine_restarts_total"), "engine", "reason")],
        "Swaps": [sum_by(window.now("quorum_swap_seconds_count"), "ensemble", "result")],
        "Versions loaded": [window.now("quorum_ensemble_info")],
        "Memory": [window.now("quorum_engine_resident_bytes"), window.now("process_resident_memory_bytes")],
        "Gateway: candidates, and those without a score": [
            rate("quorum_generated_candidates_total"),
            rate("quorum_unranked_candidates_total"),
            rate("quorum_generation_failures_total", "code"),
        ],
    }


def rules(window: Window) -> dict[str, Vector]:
    """By the record's name."""
    rate = partial_rate(window)
    submitted, computed = (rate(f"quorum_{name}_tokens_total") for name in ("submitted", "computed"))
    asked = sum_by(
        window.rate("quorum_request_seconds_bucket", RATE_S, route=lambda r: r in ("/score", "/rank", "/compare")), "le"
    )
    return {
        "quorum:requests:rate5m": rate("quorum_requests_total"),
        "quorum:request_seconds:p99_5m": quantile(0.99, asked),
        "quorum:shared_tokens:ratio5m": combine(lambda a, b: 1 - b / a, submitted, computed),
        "quorum:score:mean5m": mean_score(window, "ensemble", "run"),
        "quorum:score_std:mean5m": mean(window, "quorum_score_std", "ensemble", "run"),
        "quorum:std_exceeded:ratio5m": exceeded(window, "ensemble", "run"),
    }


def partial_rate(window: Window) -> Callable[..., Vector]:
    return lambda name, *by: sum_by(window.rate(name, RATE_S), *by)


def mean_score(window: Window, *by: str) -> Vector:
    rate = partial_rate(window)
    items = sum_by(window.rate("quorum_calibrated_score_bucket", RATE_S, le="+Inf"), *by)
    above, below = (rate(f"quorum_calibrated_score_{name}_total", *by) for name in ("positive", "negative"))
    return divide(subtract(above, below), items)


def mean(window: Window, name: str, *by: str) -> Vector:
    rate = partial_rate(window)
    return divide(rate(f"{name}_sum", *by), rate(f"{name}_count", *by))


def exceeded(window: Window, *by: str) -> Vector:
    rate = partial_rate(window)
    return divide(rate("quorum_std_exceeded_items_total", *by), rate("quorum_std_checked_items_total", *by))


def buckets(window: Window, name: str) -> Vector:
    return sum_by(window.increase(f"{name}_bucket", RATE_S), "le")


def quantiles(window: Window, q: float, name: str, *by: str) -> Vector:
    return quantile(q, sum_by(window.rate(f"{name}_bucket", RATE_S), *by, "le"))
