"""Intervals against resamples that are written out row by row."""

from __future__ import annotations

import numpy as np
import pytest

from quorum_trainer.evaluation.bootstrap import (
    RESAMPLES,
    band,
    cluster_ids,
    interval,
    mean_estimate,
    resampled_counts,
    resampled_means,
)


def test_resampled_means_are_those_of_samples_written_out() -> None:
    rng = np.random.default_rng(3)
    values, clusters = rng.normal(size=23), cluster_ids([f"p{index // 3 % 5}" for index in range(23)])
    counts = resampled_counts(5)
    expected = []
    for draw in counts:
        rows = [value for cluster in range(5) for _ in range(draw[cluster]) for value in values[clusters == cluster]]
        expected.append(sum(rows) / len(rows))
    # The same sums in another order: double rounding alone.
    np.testing.assert_allclose(resampled_means(values, clusters), expected, rtol=1e-12)
    estimate = mean_estimate(values, clusters)
    assert estimate.value == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(expected, [0.025, 0.975])))


def test_every_resample_draws_as_many_prompts_as_there_are() -> None:
    counts = resampled_counts(7)
    assert counts.shape == (RESAMPLES, 7)
    assert (counts.sum(axis=1) == 7).all()
    # 1,000 draws of mean 1 and variance 6/7: four standard errors.
    np.testing.assert_allclose(counts.mean(axis=0), 1.0, atol=4 * np.sqrt(6 / 7 / RESAMPLES))
    assert not np.array_equal(counts, resampled_counts(7, stream=1))


def test_repeating_the_rows_of_a_prompt_does_not_narrow_the_interval() -> None:
    values = np.random.default_rng(0).integers(0, 2, 40).astype(float)
    once = mean_estimate(values, np.arange(40))
    ten_times = mean_estimate(np.repeat(values, 10), np.repeat(np.arange(40), 10))
    as_if_independent = mean_estimate(np.repeat(values, 10), np.arange(400))
    assert (ten_times.low, ten_times.high) == pytest.approx((once.low, once.high))
    assert once.high is not None
    assert once.low is not None
    assert as_if_independent.high is not None
    assert as_if_independent.low is not None
    # sqrt(10) narrower; the factor 2.5 leaves room for the resamples' own noise.
    assert (once.high - once.low) > 2.5 * (as_if_independent.high - as_if_independent.low)


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(size=400)
    estimate = mean_estimate(values, np.arange(400))
    error = values.std(ddof=1) / 20
    assert estimate.low is not None
    # The 2.5 % quantile of 1,000 resamples has a standard error of about 0.08 of the mean's: three of them.
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)


def test_what_resampling_cannot_say_is_none() -> None:
    single = mean_estimate(np.array([1.0, 0.0]), np.array([0, 0]))
    assert (single.value, single.low, single.high) == (0.5, None, None)
    assert interval(0.5, np.array([np.nan, np.nan, 0.5])).low is None
    assert interval(0.5, np.array([np.nan, 0.5, 0.5])).low == 0.5


def test_keys_are_numbered_by_first_appearance() -> None:
    assert cluster_ids(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_a_band_is_the_interval_of_each_point() -> None:
    values, clusters = np.random.default_rng(4).normal(size=(20, 3)), cluster_ids([f"p{i % 8}" for i in range(20)])
    curve = band(values, clusters)
    for place in range(3):
        estimate = mean_estimate(values[:, place], clusters)
        own = [curve[key][place] for key in ("value", "low", "high")]  # type: ignore[index]
        assert own == pytest.approx([estimate.value, estimate.low, estimate.high], rel=1e-12)
    assert band(values, np.zeros(20, dtype=np.int64)) == {"value": curve["value"], "low": None, "high": None}
