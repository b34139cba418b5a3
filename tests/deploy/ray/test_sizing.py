"""The cost model against times that were measured on an H100, and against operations counted layer by layer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from quorum_model.benchmark.flops import LayerShape, count_flops, separate, with_prefix
from quorum_ray.sizing import EFFICIENCY, H100_FLOPS, HEADROOM, Workload, gpus_for, samples_per_second

MEASURED = Path(__file__).parents[2] / "benchmarks"
LAYERS, HIDDEN, FFN, KEYS = 16, 2048, 8192, 512
"""Of the backbone that was measured: random:16x2048x8192x32x8."""
PARAMETERS = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * FFN)
SHAPES = [LayerShape(HIDDEN * HIDDEN, 2 * HIDDEN * KEYS, HIDDEN * HIDDEN + 3 * HIDDEN * FFN, HIDDEN)] * LAYERS
WORK = Workload(PARAMETERS, LAYERS, HIDDEN, members=5, adapted_layers=LAYERS, prompt=0, response=480)


@pytest.mark.parametrize("adapted", [1, 8, 16])
def test_operations_are_those_that_are_counted(adapted: int) -> None:
    """To 3 %: the model has one number for all layers."""
    counted = count_flops(
        SHAPES, separate([480], is_causal=True, pooling="last"), members=5, first_adapted=LAYERS - adapted
    )
    assert replace(WORK, adapted_layers=adapted).flops == pytest.approx(counted.total, rel=0.03)


def test_shared_prompts_are_computed_once() -> None:
    work = replace(WORK, prompt=512, response=128, samples=16)
    counted = count_flops(SHAPES, with_prefix(512, [128] * 16), members=5, first_adapted=0)
    assert 16 * work.flops == pytest.approx(counted.total, rel=0.03)
    assert 16 * work.computed_tokens == 512 + 16 * 128
    assert replace(work, is_causal=False).computed_tokens == 640


def test_predicts_what_was_measured() -> None:
    """Within 5 %, from 8,000 to 65,000 tokens; texts had 480 tokens on average."""
    measured = json.loads((MEASURED / "engine_h100.json").read_text())
    for point in measured["points"]:
        predicted_s = point["tokens"] / 480 / samples_per_second(WORK)
        assert predicted_s == pytest.approx(point["compiled_ms"] / 1000, rel=0.05), point
    assert min(measured["peak_tflops"]) <= H100_FLOPS / 1e12 <= max(measured["peak_tflops"])
    fractions = [point["compiled_fraction_of_peak"] for point in measured["points"]]
    assert min(fractions) <= EFFICIENCY <= max(fractions)
    sharing = json.loads((MEASURED / "prefix_h100.json").read_text())["median_seconds"]["sharing_on"]
    work = replace(WORK, prompt=512, response=128, samples=16)
    # A pass of 2,560 tokens fills the card less well.
    assert 16 / samples_per_second(work) == pytest.approx(sharing, rel=0.2)


def test_gpus_have_headroom() -> None:
    rate = samples_per_second(WORK)
    assert gpus_for(WORK, 0.99 * HEADROOM * rate) == 1
    assert gpus_for(WORK, 1.01 * HEADROOM * rate) == 2
    assert gpus_for(WORK, 10 * rate) == 15
