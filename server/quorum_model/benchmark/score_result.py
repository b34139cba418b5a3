"""The figures of `quorum bench score`: ratios, tokens a second, and the fraction of the machine's matrix peak.

    Contest, Turns, peak, operations  --contest_result-->  a JSON object

Pure arithmetic on times. Knows no models.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from quorum_model.benchmark.flops import Flops
from quorum_model.benchmark.turns import Turns

PEAK = "matrix_peak"
"""The turn-taker that multiplies square matrices."""

RATIOS = {
    "ratio_peft_sequential": ("peft_sequential",),
    "ratio_peft_sequential_same_dtype": ("peft_sequential_same_dtype", "peft_sequential"),
    "ratio_peft_mixed_batch": ("peft_mixed_batch",),
    "ratio_peft_padding_free": ("peft_padding_free",),
    "ratio_peft_padded_unsorted": ("peft_padded_unsorted",),
    "ratio_vllm": ("vllm_one_model",),
}
"""Name of the ratio -> contestants that may stand above the line, the first that competes."""


def fraction_of_peak(turns: Turns, flops: int, peak_flops: int) -> float:
    """Operations a second of `quorum` over those of square products, in the same round; the median over rounds.

    Args:
        turns: of both.
        flops: operations that the scores need.
        peak_flops: operations of one turn of square products.
    """
    pairs = zip(turns.seconds["quorum"], turns.seconds[PEAK], strict=True)
    return statistics.median((flops / own) / (peak_flops / peak) for own, peak in pairs)


def ratios(turns: Turns, members: int) -> dict[str, float | None]:
    """How many times as long as `quorum` each peer takes for all members; null where it did not compete."""
    found: dict[str, float | None] = {}
    for name, contestants in RATIOS.items():
        slower = next((one for one in contestants if one in turns.seconds), None)
        times = members if slower == "vllm_one_model" else 1  # it ran one member, and would run K one after another
        found[name] = None if slower is None else times * turns.ratio(slower, "quorum")
    found["ratio_over_one_model"] = turns.ratio("quorum", "one_model")
    return found


def tokens_per_second(turns: Turns, tokens: int, members: Mapping[str, int]) -> dict[str, float]:
    """Tokens times members that a contestant scores in a second.

    Args:
        turns: of the contestants.
        tokens: of all sequences, once.
        members: by contestant, how many it scores with.
    """
    return {name: count * tokens / turns.median(name) for name, count in members.items()}


def contest_figures(
    turns: Turns,
    *,
    tokens: int,
    members: Mapping[str, int],
    flops: Flops | None,
    one_flops: Flops | None,
    peak_flops: int,
) -> dict[str, Any]:
    """All figures that follow from times.

    Args:
        turns: of the contestants and of `PEAK`.
        tokens: of all sequences, once.
        members: by contestant, how many it scores with.
        flops: what the ensemble's scores need; None where it is not counted.
        one_flops: what one member's scores need; likewise.
        peak_flops: operations of one turn of square products.
    """
    return {
        "fraction_of_peak": flops and fraction_of_peak(turns, flops.total, peak_flops),
        "fraction_of_peak_least": flops and fraction_of_peak(turns, flops.least, peak_flops),
        **ratios(turns, members["quorum"]),
        "flop_ratio_over_one_model": flops.total / one_flops.total if flops and one_flops else None,
        "median_seconds": {name: turns.median(name) for name in turns.seconds},
        "tokens_per_second": tokens_per_second(turns, tokens, members),
        "peak_flops_per_second": peak_flops / turns.median(PEAK),
        "model_flops": flops
        and {"linears": flops.linears, "attention": flops.attention, "repeated_inputs": flops.repeated_inputs},
        "seconds": turns.seconds,
    }


def nanoseconds_per_token_member(seconds: Sequence[float], tokens: int, members: int) -> float:
    """The median time of a token under one member."""
    return statistics.median(seconds) / (tokens * members) * 1e9
