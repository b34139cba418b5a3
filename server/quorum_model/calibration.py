"""Calibration and centring of member scores: what makes K reward models comparable before they become one reward.

    raw (K, B)  --normalize-->  calibrated (K, B)  --center_group | center_reference-->  members (K, B)
    held-out pairs (K, P)  --fit_member_calibration, fit_pair_temperature-->  means, scales, tau

Bradley-Terry fixes margins only: an offset per member and per prompt is free and says nothing, but would count as
disagreement. Shapes: `K` members, `B` sequences, `P` pairs; float64. Knows no models, files or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit

from quorum_model.bundle.manifest import ReferenceStats
from quorum_model.errors import CalibrationFailed

_ROUNDING = 16 * float(np.finfo(np.float32).eps)
"""Of a raw score, relative: a few last bits of fp32."""

FloatArray = NDArray[np.float64]

MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 100.0
"""Bounds of a fitted tau. Calibrated margins are of order 1: the upper bound is met where held-out pairs are all
ordered rightly (the likelihood then has no maximum), the lower one where they are ordered no better than by chance."""

_STD_QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
_HISTOGRAM_BINS = 32
_HISTOGRAM_TAIL = 0.001


def fit_member_calibration(chosen: Any, rejected: Any) -> tuple[FloatArray, FloatArray]:
    """Each member's mean score, and its scale: the RMS of its pair margins / sqrt(2).

    For independent scores of equal spread the scale is their standard deviation; unlike that, it is free of the
    offsets between prompts.

    Args:
        chosen: raw scores of the chosen responses, shape (K, P).
        rejected: raw scores of the rejected ones, shape (K, P).

    Returns:
        (means (K,), scales (K,)).

    Raises:
        CalibrationFailed: no pairs, or a member whose scores are not finite or whose margins are all zero, or as good
            as zero beside the scores: an fp32 product may round equal texts differently by their place in a pass.
    """
    winners, losers = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
    if winners.ndim != 2 or winners.shape != losers.shape or winners.shape[1] == 0:
        raise CalibrationFailed(f"calibration needs two arrays (K, P) of pairs, not {winners.shape}, {losers.shape}")
    means = (winners.mean(axis=1) + losers.mean(axis=1)) / 2
    scales = np.sqrt(np.mean((winners - losers) ** 2, axis=1) / 2)
    noise = _ROUNDING * np.maximum(np.abs(winners), np.abs(losers)).max(axis=1)
    for member, (mean, scale) in enumerate(zip(means, scales, strict=True)):
        if not (np.isfinite(mean) and np.isfinite(scale) and scale > noise[member]):
            raise CalibrationFailed(
                f"member {member} cannot be calibrated: mean {mean:g}, scale {scale:g} on {winners.shape[1]} pairs"
            )
    return means, scales


def normalize(raw: Any, means: Any, scales: Any) -> FloatArray:
    """(raw - mean) / scale of each member.

    Args:
        raw: shape (K, B).
        means: shape (K,).
        scales: shape (K,), > 0.

    Returns:
        Shape (K, B).
    """
    scores = np.asarray(raw, np.float64)
    result: FloatArray = (scores - np.asarray(means)[:, None]) / np.asarray(scales)[:, None]
    return result


def center_reference(scores: FloatArray, reference: FloatArray) -> FloatArray:
    """Each member's score relative to its score of a reference response of the same prompt.

    Args:
        scores: shape (K, B).
        reference: shape (K, B), column by column the reference of `scores`.

    Returns:
        Shape (K, B).
    """
    return scores - reference


def center_group(scores: FloatArray, groups: Sequence[int]) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Each member's score relative to its mean over the group, the candidates of one prompt.

    A column that is not finite in every member counts as absent: it enters no mean, and stays not finite.

    Args:
        scores: shape (K, B).
        groups: shape (B,), equal numbers for columns of one group.

    Returns:
        (centred (K, B), alone (B,)): alone is True for finite columns without another finite one in their group:
        their centred score would be 0 for any response, and is NaN instead.
    """
    finite = np.isfinite(scores).all(axis=0)
    _, inverse = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(inverse, weights=finite, minlength=1)
    sums = np.zeros((len(sizes), scores.shape[0]))
    np.add.at(sums, inverse[finite], scores[:, finite].T)
    alone = finite & (sizes[inverse] < 2)
    centred = np.where(finite, scores, np.nan) - (sums / np.maximum(sizes, 1.0)[:, None])[inverse].T
    centred[:, alone] = np.nan
    return centred, alone


def fit_pair_temperature(margins: Any) -> float:
    """Maximum-likelihood tau of P(chosen beats rejected) = sigmoid(tau * mean_k margin_k).

    The mean loss, softplus(-tau * margin), is convex in tau: its derivative has one root, or none within
    [`MIN_TEMPERATURE`, `MAX_TEMPERATURE`], and then tau is the nearer bound.

    Args:
        margins: calibrated margins of chosen over rejected, shape (K, P).

    Raises:
        CalibrationFailed: no pairs, or margins that are not finite.
    """
    mean_margins = np.asarray(margins, np.float64).mean(axis=0)
    if mean_margins.size == 0 or not np.isfinite(mean_margins).all():
        raise CalibrationFailed("the pair temperature needs at least one pair, and finite margins")

    def slope(tau: float) -> float:
        return float(-np.mean(mean_margins * expit(-tau * mean_margins)))

    if slope(MIN_TEMPERATURE) >= 0:
        return MIN_TEMPERATURE
    if slope(MAX_TEMPERATURE) <= 0:
        return MAX_TEMPERATURE
    return float(brentq(slope, MIN_TEMPERATURE, MAX_TEMPERATURE, xtol=1e-12))


def pair_probability(tau: float, margins: FloatArray) -> FloatArray:
    """P(a beats b) = sigmoid(tau * mean_k margin_k).

    Args:
        tau: the ensemble's pair temperature.
        margins: calibrated margins of a over b, shape (K, P).

    Returns:
        Shape (P,).
    """
    return np.asarray(expit(tau * margins.mean(axis=0)), np.float64)


def reference_stats(scores: FloatArray) -> ReferenceStats:
    """What calibrated scores look like on held-out data.

    Args:
        scores: calibrated, shape (K, B).

    Returns:
        Quantiles of the std over members (none where K = 1), and a histogram of the mean over its middle 99.8 %:
        the few beyond are not counted, so that one outlier does not stretch the bins.
    """
    means = scores.mean(axis=0)
    quantiles: dict[str, float] = {}
    if scores.shape[0] > 1:
        spread = scores.std(axis=0, ddof=1)
        quantiles = {str(q): float(np.quantile(spread, q)) for q in _STD_QUANTILES}
    low, high = np.quantile(means, [_HISTOGRAM_TAIL, 1 - _HISTOGRAM_TAIL])
    counts, edges = np.histogram(means, bins=_HISTOGRAM_BINS, range=(float(low), float(high)))
    return ReferenceStats(
        std_quantiles=quantiles,
        score_edges=[float(edge) for edge in edges],
        score_counts=[int(count) for count in counts],
    )
