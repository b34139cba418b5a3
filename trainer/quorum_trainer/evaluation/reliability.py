"""Are the probabilities right: calibration of P(a beats b) = sigmoid(tau * mean margin).

    margins (K, P), tau  --symmetrise, bin-->  ECE, Brier, negative log-likelihood, bins of a reliability diagram

Every pair counts with its flip, (p, won) and (1 - p, lost): files put the winner first, and without the flip every
outcome would be 1 (RewardUQ, arXiv 2602.24040, A.2). Knows no files.

Shapes: `K` members, `P` pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss

from quorum_model.calibration import fit_pair_temperature, pair_probability

NUM_BINS = 15
NUM_FOLDS = 5
FOLD_SEED = 0

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bins:
    """Non-empty bins of equal width, over a pair and its flip: predicted and observed means, and counts."""

    predicted: list[float]
    observed: list[float]
    counts: list[int]


@dataclass(frozen=True, slots=True)
class Reliability:
    """ece: expected calibration error over `NUM_BINS` bins. brier: mean squared error. nll: nats a pair."""

    ece: float
    brier: float
    nll: float
    bins: Bins


def reliability(margins: FloatArray, taus: FloatArray | float) -> Reliability:
    """How well sigmoid(tau * mean margin) predicts.

    Args:
        margins: calibrated margins of chosen over rejected, shape (K, P).
        taus: one for all, or one a pair (P,).
    """
    exponent = np.broadcast_to(taus, margins.shape[1:]) * margins.mean(axis=0)
    predicted, outcomes = symmetrise(pair_probability(1.0, exponent[None, :]))
    bins = bin_outcomes(predicted, outcomes)
    return Reliability(
        ece=calibration_error(bins),
        brier=float(brier_score_loss(outcomes, predicted)),
        nll=float(np.logaddexp(0.0, -exponent).mean()),
        bins=bins,
    )


def symmetrise(probabilities: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Each pair and its flip.

    Args:
        probabilities: of the true winner, shape (P,).

    Returns:
        (predicted (2P,), outcomes (2P,) of zeros and ones).
    """
    predicted = np.concatenate([probabilities, 1 - probabilities])
    return predicted, np.concatenate([np.ones(len(probabilities)), np.zeros(len(probabilities))])


def bin_outcomes(predicted: FloatArray, outcomes: FloatArray) -> Bins:
    """Means and counts in `NUM_BINS` bins of equal width over [0, 1]; 1 belongs to the last."""
    index = np.minimum((predicted * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(index, minlength=NUM_BINS)
    used = counts > 0
    sums = (np.bincount(index, weights=values, minlength=NUM_BINS)[used] for values in (predicted, outcomes))
    means = [(total / counts[used]).tolist() for total in sums]
    return Bins(means[0], means[1], counts[used].tolist())


def calibration_error(bins: Bins) -> float:
    """Expected calibration error: the mean distance of predicted from observed, weighted by count."""
    gaps = np.abs(np.array(bins.predicted) - np.array(bins.observed))
    return float(np.average(gaps, weights=bins.counts))


def assign_folds(clusters: IntArray, num_folds: int = NUM_FOLDS) -> IntArray:
    """A fold for every row, by its prompt alone; folds of (nearly) equal numbers of prompts.

    Args:
        clusters: prompt of each row, shape (P,), numbered from 0 without gaps.
        num_folds: fewer where there are fewer prompts.
    """
    num_clusters = int(clusters.max()) + 1
    folds = np.arange(num_clusters) % min(num_folds, num_clusters)
    return np.asarray(np.random.default_rng(FOLD_SEED).permutation(folds)[clusters])


def cross_fitted_temperatures(margins: FloatArray, clusters: IntArray) -> FloatArray:
    """For every pair a tau that was fitted on other prompts.

    Args:
        margins: calibrated, shape (K, P).
        clusters: prompt of each pair, shape (P,); at least two prompts.

    Returns:
        Shape (P,); equal within a fold.
    """
    folds = assign_folds(clusters)
    taus = np.empty(margins.shape[1])
    for fold in np.unique(folds):
        taus[folds == fold] = fit_pair_temperature(margins[:, folds != fold])
    return taus
