"""Does disagreement know of errors: rank statistics, deciles, and accuracy on the pairs that are kept.

    uncertainty, wrong (P,)  --rank_statistics-->  AUROC and Spearman with intervals over prompts
    uncertainty, shares (P,)  --deciles, selective_accuracy-->  accuracy by uncertainty

Knows no scores and no files. Shapes: `P` pairs, `R` resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from quorum_trainer.evaluation.bootstrap import Estimate, FloatArray, IntArray, interval, resampled_counts

_CHUNK = 100  # resamples at a time: (chunk, P) doubles in memory


@dataclass(frozen=True, slots=True)
class RankStatistics:
    """auroc: that a wrong pair is more uncertain than a right one. spearman: of uncertainty with being wrong."""

    auroc: Estimate
    spearman: Estimate


@dataclass(frozen=True, slots=True)
class Decile:
    """One tenth of the pairs, by rising uncertainty. standard_error: of accuracy, as if pairs were independent."""

    num_pairs: int
    uncertainty_mean: float
    accuracy: float
    standard_error: float | None


@dataclass(frozen=True, slots=True)
class Selective:
    """Accuracy on the most certain share of the pairs.

    coverage, accuracy: the curve at 20 coverages, the last one 1. area: mean accuracy over all coverages 1/P, 2/P, ...,
    1. oracle_area: of an uncertainty that puts every wrong pair last.
    """

    coverage: list[float]
    accuracy: list[float]
    area: float
    oracle_area: float


def rank_statistics(uncertainty: FloatArray, is_wrong: NDArray[np.bool_], clusters: IntArray) -> RankStatistics | None:
    """AUROC and Spearman with intervals over prompts; None where all pairs are wrong or none is.

    Args:
        uncertainty: shape (P,).
        is_wrong: shape (P,).
        clusters: prompt of each pair, shape (P,).
    """
    if is_wrong.all() or not is_wrong.any() or np.ptp(uncertainty) == 0:
        return None
    num_clusters = int(clusters.max()) + 1
    aurocs, spearmans = np.full(1, np.nan), np.full(1, np.nan)
    if num_clusters > 1:
        counts = resampled_counts(num_clusters)
        parts = [
            weighted_rank_statistics(uncertainty, is_wrong, counts[start : start + _CHUNK][:, clusters])
            for start in range(0, len(counts), _CHUNK)
        ]
        aurocs, spearmans = (np.concatenate(values) for values in zip(*parts, strict=True))
    return RankStatistics(
        interval(float(roc_auc_score(is_wrong, uncertainty)), aurocs),
        interval(float(spearmanr(uncertainty, is_wrong).statistic), spearmans),
    )


def weighted_rank_statistics(
    uncertainty: FloatArray, is_wrong: NDArray[np.bool_], counts: IntArray
) -> tuple[FloatArray, FloatArray]:
    """AUROC and Spearman of samples in which each pair occurs so many times, without writing the samples out.

    What scikit-learn and scipy give for one sample, for R of them at once: by mid-ranks, which count ties one half.

    Args:
        uncertainty: shape (P,).
        is_wrong: shape (P,).
        counts: shape (R, P).

    Returns:
        (auroc (R,), spearman (R,)); NaN where a sample has only wrong pairs, or none, or one uncertainty.
    """
    order = np.argsort(uncertainty, kind="stable")
    starts = np.flatnonzero(np.diff(uncertainty[order], prepend=-np.inf))
    ordered = counts[:, order].astype(np.float64)
    total = np.add.reduceat(ordered, starts, axis=1)  # by distinct value: (R, G)
    wrong = np.add.reduceat(ordered * is_wrong[order], starts, axis=1)
    right = total - wrong
    num_wrong, num_right = wrong.sum(axis=1), right.sum(axis=1)
    num = num_wrong + num_right
    below_right = np.cumsum(right, axis=1) - right
    rank = np.cumsum(total, axis=1) - total + (total + 1) / 2
    mean_rank = (num[:, None] + 1) / 2
    covariance = ((rank - mean_rank) * wrong).sum(axis=1) / num
    rank_variance = ((rank - mean_rank) ** 2 * total).sum(axis=1) / num
    wrong_variance = num_wrong * num_right / num**2
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = (wrong * (below_right + right / 2)).sum(axis=1) / (num_wrong * num_right)
        spearman = covariance / np.sqrt(rank_variance * wrong_variance)
    return auroc, spearman


def deciles(uncertainty: FloatArray, shares: FloatArray) -> list[Decile]:
    """Accuracy by tenths of the pairs, from the most certain to the least; fewer parts where there are fewer pairs.

    Args:
        uncertainty: shape (P,).
        shares: 1 right, 0 wrong, one half a tie; shape (P,).
    """
    order = np.argsort(uncertainty, kind="stable")
    result = []
    for part in np.array_split(order, min(10, len(order))):
        accuracy = float(shares[part].mean())
        error = float(shares[part].std(ddof=1) / np.sqrt(len(part))) if len(part) > 1 else None
        result.append(Decile(len(part), float(uncertainty[part].mean()), accuracy, error))
    return result


def selective_accuracy(uncertainty: FloatArray, shares: FloatArray) -> Selective:
    """Accuracy where the most uncertain pairs are left undecided; arguments as for `deciles`."""
    curve = _accuracy_by_coverage(shares[np.argsort(uncertainty, kind="stable")])
    kept = np.unique(np.ceil(np.linspace(0.05, 1.0, 20) * len(shares)).astype(np.int64))
    return Selective(
        coverage=(kept / len(shares)).tolist(),
        accuracy=curve[kept - 1].tolist(),
        area=float(curve.mean()),
        oracle_area=float(_accuracy_by_coverage(np.sort(shares)[::-1]).mean()),
    )


def _accuracy_by_coverage(shares: FloatArray) -> FloatArray:
    return np.asarray(np.cumsum(shares) / np.arange(1, len(shares) + 1))


def member_agreement(margins: FloatArray) -> FloatArray:
    """Share of pairs that two members order alike: margins (K, P) -> (K, K), ones on the diagonal."""
    signs = np.sign(margins)
    return np.asarray((signs[:, None, :] == signs[None, :, :]).mean(axis=2))


def mean_correlation(margins: FloatArray) -> float | None:
    """Mean Pearson correlation of two members' margins over all pairs of members.

    Args:
        margins: shape (K, P).

    Returns:
        None with one member or one pair, or where a member's margins are all equal.
    """
    if margins.shape[0] < 2 or margins.shape[1] < 2 or np.any(np.ptp(margins, axis=1) == 0):
        return None
    correlations = np.corrcoef(margins)
    return float(np.mean([correlations[i, j] for i, j in combinations(range(len(margins)), 2)]))
