"""Calibration and centring against plain loops, planted values and hand-worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize_scalar

from quorum_model.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    center_group,
    center_reference,
    fit_member_calibration,
    fit_pair_temperature,
    normalize,
    pair_probability,
    reference_stats,
)
from quorum_model.errors import CalibrationFailed

EXACT = 1e-12  # float64, a handful of operations on numbers of order 1


def test_member_calibration_by_hand() -> None:
    chosen = [[3.0, 1.0], [10.0, 10.0]]
    rejected = [[1.0, 1.0], [4.0, 2.0]]
    means, scales = fit_member_calibration(chosen, rejected)
    # member 0: mean of 3, 1, 1, 1; margins 2 and 0, RMS sqrt 2. Member 1: mean of 10, 10, 4, 2; margins 6 and 8.
    np.testing.assert_allclose(means, [1.5, 6.5], rtol=EXACT)
    np.testing.assert_allclose(scales, [1.0, math.sqrt((36 + 64) / 2) / math.sqrt(2)], rtol=EXACT)


def test_scale_of_independent_scores_is_their_standard_deviation_whatever_the_prompts_add() -> None:
    rng = np.random.default_rng(0)
    offsets = rng.normal(0, 50, (1, 20_000))
    scores = rng.normal(0, 3, (2, 1, 20_000)) + offsets
    _, scales = fit_member_calibration(scores[0], scores[1])
    assert scales[0] == pytest.approx(3, rel=0.03)  # the standard error at 20,000 pairs is 0.5 %


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ([[1.0, 2.0]], [[1.0, 2.0]]),  # no margin at all
        ([[1.0, np.nan]], [[0.0, 0.0]]),
        ([[1.0, np.inf]], [[0.0, 0.0]]),
        (np.empty((2, 0)), np.empty((2, 0))),
        ([[1.0, 2.0]], [[1.0]]),
        ([1.0, 2.0], [0.0, 0.0]),
    ],
)
def test_what_cannot_be_calibrated_is_refused(chosen: object, rejected: object) -> None:
    with pytest.raises(CalibrationFailed):
        fit_member_calibration(chosen, rejected)


def test_rounding_is_no_margin() -> None:
    """Equal texts in other places of a pass: a last bit of fp32 apart."""
    scores = np.array([[1.0, 2.0, 3.0]], np.float32)
    with pytest.raises(CalibrationFailed, match="cannot be calibrated"):
        fit_member_calibration(scores, np.nextafter(scores, np.float32(9)))
    fit_member_calibration(scores, scores + np.float32(1e-3))


def test_normalize_is_each_members_own() -> None:
    raw = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    means, scales = [0.5, -1.0, 2.0], [1.0, 2.0, 0.25]
    normalized = normalize(raw, means, scales)
    assert normalized.dtype == np.float64
    for k in range(3):
        for b in range(5):
            assert normalized[k, b] == (float(raw[k, b]) - means[k]) / scales[k]


def test_calibrated_margins_have_rms_sqrt_2() -> None:
    rng = np.random.default_rng(2)
    chosen, rejected = rng.normal(1, [[1.0], [9.0]], (2, 300)), rng.normal(0, [[2.0], [5.0]], (2, 300))
    means, scales = fit_member_calibration(chosen, rejected)
    margins = normalize(chosen, means, scales) - normalize(rejected, means, scales)
    np.testing.assert_allclose(np.sqrt((margins**2).mean(axis=1)), math.sqrt(2), rtol=EXACT)


def loss(tau: float, margins: np.ndarray) -> float:
    return float(np.mean([math.log1p(math.exp(-tau * m)) for m in margins.mean(axis=0)]))


def test_temperature_minimises_the_loss() -> None:
    rng = np.random.default_rng(3)
    margins = rng.normal(0.6, 1.0, (4, 200))
    slow = minimize_scalar(
        lambda tau: loss(tau, margins), bounds=(0.01, 100), method="bounded", options={"xatol": 1e-9}
    )
    # A minimum is flat: where it lies is known to about the square root of float64's 1e-16.
    assert fit_pair_temperature(margins) == pytest.approx(slow.x, abs=1e-5)


@pytest.mark.parametrize("planted", [0.3, 1.0, 4.0])
def test_planted_temperature_is_recovered(planted: float) -> None:
    rng = np.random.default_rng(4)
    margins = rng.normal(0, 1, (3, 40_000))
    probability = 1 / (1 + np.exp(-planted * margins.mean(axis=0)))
    signs = np.where(rng.random(40_000) < probability, 1, -1)  # the winner is "chosen": flip the pairs that lost
    # Fisher information of a logistic model's slope; 4 standard errors are 0.07 at 0.3.
    information = np.sum(probability * (1 - probability) * margins.mean(axis=0) ** 2)
    assert fit_pair_temperature(margins * signs) == pytest.approx(planted, abs=4 / math.sqrt(information))


def test_temperature_is_bounded_where_the_likelihood_has_no_maximum() -> None:
    assert fit_pair_temperature([[0.5, 1.0, 2.0]]) == MAX_TEMPERATURE
    assert fit_pair_temperature([[-0.5, -1.0, 0.2]]) == MIN_TEMPERATURE
    assert fit_pair_temperature([[1e-300, 1e-300]]) == MAX_TEMPERATURE


@pytest.mark.parametrize("margins", [np.empty((2, 0)), [[1.0, np.nan]], [[np.inf, -1.0]]])
def test_temperature_of_nothing_is_refused(margins: object) -> None:
    with pytest.raises(CalibrationFailed):
        fit_pair_temperature(margins)


def test_pair_probability_by_hand() -> None:
    margins = np.array([[1.0, -2.0, 900.0], [3.0, 2.0, 900.0]])
    expected = [1 / (1 + math.exp(-0.5 * 2)), 0.5, 1.0]
    np.testing.assert_allclose(pair_probability(0.5, margins), expected, rtol=EXACT)


def centred_by_loop(scores: np.ndarray, groups: list[int]) -> np.ndarray:
    expected = np.full(scores.shape, np.nan)
    for b in range(scores.shape[1]):
        if not all(math.isfinite(value) for value in scores[:, b]):
            continue
        friends = [
            c for c in range(scores.shape[1]) if groups[c] == groups[b] and np.isfinite(scores[:, c]).all()
        ]  # fmt: skip
        if len(friends) > 1:
            for k in range(scores.shape[0]):
                expected[k, b] = scores[k, b] - sum(scores[k, c] for c in friends) / len(friends)
    return expected


SCORES = arrays(
    np.float64,
    (3, 7),
    elements=st.one_of(st.floats(-100, 100), st.sampled_from([math.nan, math.inf, -math.inf])),
)


@given(SCORES, st.lists(st.integers(-2, 2), min_size=7, max_size=7))
def test_group_centring_equals_the_loop(scores: np.ndarray, groups: list[int]) -> None:
    centred, alone = center_group(scores, groups)
    expected = centred_by_loop(scores, groups)
    np.testing.assert_allclose(centred, expected, atol=1e-12)  # sums of 7 numbers up to 100, in another order
    finite = np.isfinite(scores).all(axis=0)
    np.testing.assert_array_equal(alone, finite & np.isnan(expected).all(axis=0))


@given(
    arrays(np.float64, (3, 6), elements=st.floats(-100, 100)),
    arrays(np.float64, (3, 2), elements=st.floats(-100, 100)),
)
def test_group_centring_removes_what_a_member_adds_to_a_prompt_and_keeps_the_margins(
    scores: np.ndarray, offsets: np.ndarray
) -> None:
    groups = [0, 1, 0, 1, 0, 1]
    centred, _ = center_group(scores, groups)
    shifted, _ = center_group(scores + offsets[:, groups], groups)
    np.testing.assert_allclose(shifted, centred, atol=1e-11)
    for group in (0, 1):
        own = [b for b in range(6) if groups[b] == group]
        means = scores[:, own].mean(axis=0)
        np.testing.assert_allclose(
            np.subtract.outer(centred[:, own].mean(axis=0), centred[:, own].mean(axis=0)),
            np.subtract.outer(means, means),
            atol=1e-11,
        )


def test_reference_centring_by_hand() -> None:
    result = center_reference(np.array([[3.0, 1.0], [5.0, 2.0]]), np.array([[1.0, 1.0], [7.0, 0.0]]))
    assert result.tolist() == [[2.0, 0.0], [-2.0, 2.0]]


def test_reference_stats_against_a_sorted_list() -> None:
    scores = np.random.default_rng(5).normal(size=(4, 1001))
    stats = reference_stats(scores)
    spread = sorted(np.std(scores[:, b], ddof=1) for b in range(1001))
    for name, value in stats.std_quantiles.items():
        assert value == pytest.approx(
            spread[round(float(name) * 1000)], rel=EXACT
        )  # 1001 values: quantiles fall on one
    means = scores.mean(axis=0)
    edges = stats.score_edges
    assert len(edges) == 33
    assert edges[0] == pytest.approx(sorted(means)[1])
    assert edges[-1] == pytest.approx(sorted(means)[-2])
    for i, count in enumerate(stats.score_counts):
        is_last = i == 31
        assert count == sum(edges[i] <= m < edges[i + 1] or (is_last and m == edges[32]) for m in means)


def test_one_member_has_no_std_quantiles() -> None:
    stats = reference_stats(np.array([[0.0, 1.0, 2.0]]))
    assert stats.std_quantiles == {}
    assert sum(stats.score_counts) >= 1
