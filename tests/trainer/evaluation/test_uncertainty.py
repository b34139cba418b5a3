"""Rank statistics against scikit-learn and scipy on samples written out; the rest by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from quorum_trainer.evaluation.uncertainty import (
    deciles,
    mean_correlation,
    member_agreement,
    rank_statistics,
    selective_accuracy,
    weighted_rank_statistics,
)


@pytest.mark.parametrize("levels", [1000, 4])  # 4: ties everywhere
def test_weighted_statistics_are_those_of_repeated_pairs(levels: int) -> None:
    rng = np.random.default_rng(levels)
    uncertainty, is_wrong = rng.integers(0, levels, 30) / 7, rng.random(30) < 0.4
    counts = rng.integers(0, 4, (20, 30))
    auroc, spearman = weighted_rank_statistics(uncertainty, is_wrong, counts)
    for row, own in enumerate(counts):
        values, wrong = np.repeat(uncertainty, own), np.repeat(is_wrong, own)
        # Sums of ranks, in another order.
        assert auroc[row] == pytest.approx(roc_auc_score(wrong, values), abs=1e-12)
        assert spearman[row] == pytest.approx(spearmanr(values, wrong).statistic, abs=1e-12)


def test_samples_without_a_statistic_are_nan() -> None:
    uncertainty, is_wrong = np.array([1.0, 2.0, 3.0]), np.array([True, False, False])
    auroc, spearman = weighted_rank_statistics(uncertainty, is_wrong, np.array([[0, 1, 1], [2, 0, 0], [1, 1, 0]]))
    assert np.isnan(auroc[:2]).all()
    assert np.isnan(spearman[:2]).all()
    assert (auroc[2], spearman[2]) == pytest.approx((0.0, -1.0))


def test_auroc_by_hand() -> None:
    # Wrong: 3 and 1. Right: 2 and 1. Of the four comparisons 3 > 2, 3 > 1, 1 < 2, 1 = 1: 2.5 of 4.
    figures = rank_statistics(
        np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False]), np.array([0, 1, 2, 3])
    )
    assert figures is not None
    assert figures.auroc.value == 0.625


def test_intervals_are_over_prompts() -> None:
    rng = np.random.default_rng(0)
    uncertainty = rng.normal(size=60)
    is_wrong = rng.random(60) < 1 / (1 + np.exp(-uncertainty))
    once = rank_statistics(uncertainty, is_wrong, np.arange(60))
    repeated = rank_statistics(np.tile(uncertainty, 5), np.tile(is_wrong, 5), np.tile(np.arange(60), 5))
    assert once is not None
    assert repeated is not None
    assert once.auroc.low is not None
    assert once.auroc.low < once.auroc.value
    # The same pairs five times over say nothing new: equal intervals, up to the order of sums.
    assert (repeated.auroc.low, repeated.auroc.high) == pytest.approx((once.auroc.low, once.auroc.high))
    assert repeated.spearman.low == pytest.approx(once.spearman.low)


@pytest.mark.parametrize("is_wrong", [[True, True], [False, False]])
def test_there_is_none_where_all_are_alike(is_wrong: list[bool]) -> None:
    assert rank_statistics(np.array([1.0, 2.0]), np.array(is_wrong), np.array([0, 1])) is None
    assert rank_statistics(np.array([1.0, 1.0]), np.array([True, False]), np.array([0, 1])) is None


def test_deciles_by_hand() -> None:
    uncertainty = np.arange(20, 0, -1.0)  # the last pairs are the most certain
    shares = np.array([0.0] * 10 + [1.0] * 9 + [0.5])
    table = deciles(uncertainty, shares)
    assert [one.num_pairs for one in table] == [2] * 10
    assert table[0].uncertainty_mean == 1.5
    assert [one.accuracy for one in table] == [0.75, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert table[0].standard_error == pytest.approx(np.std([1, 0.5], ddof=1) / np.sqrt(2))
    assert [one.num_pairs for one in deciles(uncertainty[:3], shares[:3])] == [1, 1, 1]
    assert deciles(uncertainty[:3], shares[:3])[0].standard_error is None


def test_selective_accuracy_against_a_loop() -> None:
    rng = np.random.default_rng(1)
    uncertainty, shares = rng.permutation(37).astype(float), rng.integers(0, 3, 37) / 2
    figures = selective_accuracy(uncertainty, shares)
    ranked = [share for _, share in sorted(zip(uncertainty, shares, strict=True))]
    curve = [sum(ranked[:kept]) / kept for kept in range(1, 38)]
    best = sorted(shares, reverse=True)
    assert figures.area == pytest.approx(sum(curve) / 37)
    assert figures.oracle_area == pytest.approx(sum(sum(best[:kept]) / kept for kept in range(1, 38)) / 37)
    for coverage, accuracy in zip(figures.coverage, figures.accuracy, strict=True):
        assert accuracy == pytest.approx(curve[round(coverage * 37) - 1])
    assert (figures.coverage[-1], figures.accuracy[-1]) == (1.0, pytest.approx(shares.mean()))


def test_agreement_and_correlation_by_hand() -> None:
    margins = np.array([[1.0, 2.0, -1.0, 0.0], [2.0, 4.0, -2.0, 0.0], [-1.0, 1.0, -1.0, 1.0]])
    assert member_agreement(margins).tolist() == [[1, 1, 0.5], [1, 1, 0.5], [0.5, 0.5, 1]]
    pair = np.corrcoef(margins[0], margins[2])[0, 1]
    assert mean_correlation(margins) == pytest.approx((1 + 2 * pair) / 3)
    assert mean_correlation(margins[:1]) is None
    assert mean_correlation(np.ones((2, 4))) is None
