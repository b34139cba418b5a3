"""Ratios and fractions of times worked out by hand."""

from __future__ import annotations

import pytest

from quorum_model.benchmark.flops import Flops
from quorum_model.benchmark.score_result import PEAK, contest_figures, nanoseconds_per_token_member
from quorum_model.benchmark.turns import Turns

SECONDS = {
    "quorum": [2.0, 4.0, 2.0],
    "one_model": [1.0, 1.0, 2.0],
    "peft_sequential": [8.0, 8.0, 10.0],
    "peft_sequential_same_dtype": [6.0, 4.0, 6.0],
    "vllm_one_model": [1.0, 2.0, 2.0],
    PEAK: [0.5, 0.5, 1.0],
}
MEMBERS = {name: 1 if "one_model" in name else 5 for name in SECONDS if name != PEAK}
FLOPS = Flops(linears=900, attention=100, repeated_inputs=200)
ONE = Flops(linears=230, attention=20, repeated_inputs=0)


def test_figures() -> None:
    found = contest_figures(Turns(SECONDS), tokens=100, members=MEMBERS, flops=FLOPS, one_flops=ONE, peak_flops=1000)
    # Rounds: 500, 250, 500 operations a second, of 2000, 2000, 1000.
    assert found["fraction_of_peak"] == pytest.approx(0.25)
    assert found["fraction_of_peak_least"] == pytest.approx(0.2)
    assert found["ratio_peft_sequential"] == pytest.approx(4)
    assert found["ratio_peft_sequential_same_dtype"] == pytest.approx(3)
    assert found["ratio_vllm"] == pytest.approx(5 * 0.5)  # one model, five times
    assert found["ratio_over_one_model"] == pytest.approx(2)
    assert found["flop_ratio_over_one_model"] == pytest.approx(4)
    assert found["ratio_peft_mixed_batch"] is None
    assert found["tokens_per_second"]["quorum"] == pytest.approx(250)
    assert found["tokens_per_second"]["vllm_one_model"] == pytest.approx(50)
    assert found["peak_flops_per_second"] == pytest.approx(2000)
    assert found["model_flops"] == {"linears": 900, "attention": 100, "repeated_inputs": 200}


def test_in_fp32_both_peft_ratios_are_of_one_contestant() -> None:
    seconds = {name: own for name, own in SECONDS.items() if name != "peft_sequential_same_dtype"}
    found = contest_figures(Turns(seconds), tokens=1, members={"quorum": 5}, flops=None, one_flops=None, peak_flops=1)
    assert found["ratio_peft_sequential_same_dtype"] == found["ratio_peft_sequential"] == pytest.approx(4)
    assert found["fraction_of_peak"] is None
    assert found["model_flops"] is None


def test_time_of_a_token() -> None:
    assert nanoseconds_per_token_member([3.0, 1.0, 2.0], tokens=1000, members=4) == pytest.approx(500_000)
