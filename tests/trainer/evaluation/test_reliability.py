"""Calibration figures against loops over pairs, and tau against the truth that was planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss

from quorum_model.calibration import fit_pair_temperature
from quorum_trainer.evaluation.reliability import (
    NUM_BINS,
    NUM_FOLDS,
    assign_folds,
    bin_outcomes,
    cross_fitted_temperatures,
    reliability,
    symmetrise,
)


def ece_by_hand(probabilities: list[float]) -> float:
    """Over pairs and flips, one bin after the other."""
    cases = [(p, 1) for p in probabilities] + [(1 - p, 0) for p in probabilities]
    total = 0.0
    for index in range(NUM_BINS):
        low, high = index / NUM_BINS, (index + 1) / NUM_BINS
        own = [(p, y) for p, y in cases if low <= p < high or (index == NUM_BINS - 1 and p == 1)]
        if own:
            gap = abs(sum(p for p, _ in own) / len(own) - sum(y for _, y in own) / len(own))
            total += gap * len(own) / len(cases)
    return total


def test_figures_against_loops() -> None:
    margins = np.random.default_rng(0).normal(0.4, 1.0, (3, 200))
    figures = reliability(margins, 0.7)
    probabilities = [1 / (1 + math.exp(-0.7 * margin)) for margin in margins.mean(axis=0)]
    assert figures.ece == pytest.approx(ece_by_hand(probabilities), abs=1e-12)
    assert figures.brier == pytest.approx(np.mean([(1 - p) ** 2 for p in probabilities]), abs=1e-12)
    predicted, outcomes = symmetrise(np.array(probabilities))
    assert figures.nll == pytest.approx(log_loss(outcomes, predicted), abs=1e-12)
    assert sum(figures.bins.counts) == 400


def test_a_probability_of_one_half_has_no_calibration_error() -> None:
    figures = reliability(np.zeros((2, 10)), 3.0)
    assert (figures.ece, figures.brier) == (0.0, 0.25)
    assert figures.nll == pytest.approx(math.log(2))


def test_always_sure_and_always_wrong() -> None:
    figures = reliability(np.full((1, 4), -50.0), 1.0)
    # sigmoid(-50) is 2e-22.
    assert (figures.ece, figures.brier, figures.nll) == pytest.approx((1.0, 1.0, 50.0))


def test_the_last_bin_holds_one() -> None:
    bins = bin_outcomes(np.array([0.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0]))
    assert (bins.predicted, bins.observed, bins.counts) == ([0.0, 1.0], [0.0, 0.5], [1, 2])


def test_folds_are_by_prompt_and_nearly_equal() -> None:
    clusters = np.repeat(np.arange(23), 3)
    folds = assign_folds(clusters)
    assert all(len(set(folds[clusters == cluster])) == 1 for cluster in range(23))
    sizes = np.bincount(folds[::3])
    assert len(sizes) == NUM_FOLDS
    assert sizes.max() - sizes.min() <= 1
    assert set(assign_folds(np.array([0, 1, 1]))) == {0, 1}


def test_cross_fitted_tau_is_the_planted_one_and_never_saw_its_own_prompts() -> None:
    rng = np.random.default_rng(4)
    true_tau = 0.8
    # Positive where the better one is first: the sign is drawn with probability sigmoid(tau * |margin|).
    size = np.abs(rng.normal(0, 2, 4000))
    margins = np.where(rng.random(4000) < 1 / (1 + np.exp(-true_tau * size)), size, -size)[None, :]
    clusters = np.repeat(np.arange(1000), 4)
    taus = cross_fitted_temperatures(margins, clusters)
    assert len(set(taus)) == NUM_FOLDS
    # The likelihood's curvature at 3,200 pairs of this spread gives a standard error of about 0.035: four of them.
    np.testing.assert_allclose(taus, true_tau, atol=0.14)

    folds = assign_folds(clusters)
    for fold in range(NUM_FOLDS):
        assert taus[folds == fold][0] == fit_pair_temperature(margins[:, folds != fold])
        changed = margins.copy()
        changed[:, folds == fold] *= -3
        assert cross_fitted_temperatures(changed, clusters)[folds == fold][0] == taus[folds == fold][0]
