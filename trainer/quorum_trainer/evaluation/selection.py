"""Which mode and beta a bundle should have by default: the one whose picks have more gold, unless noise could say so.

    gold of the pick (S, Q)  --select_scoring-->  Selection: a scoring, with its cross-validated gold and interval

With two dozen scorings the best one beats the mean on almost any data. So another is taken only where three things
hold. On all prompts it beats the mean by more than one standard error of the difference (the one-standard-error rule of
Breiman et al. 1984, section 3.4.3, on paired differences). In cross-validation over prompts the same rule, choosing on
four fifths and judged on the fifth, beats the mean with a 95 % interval above 0. And chance would make the best of as
many scorings so good in fewer than 1 % of data sets (`luck`). On pure noise (250 data sets each of 40, 120 and 400
pools) the first alone picks in 70 %, the first two in 4 to 8 %, all three in 0 to 2 %. Knows no files.

Shapes: `S` scorings, `Q` pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quorum_trainer.evaluation.best_of import best_of_n_of, random_orders
from quorum_trainer.evaluation.bootstrap import SEED, Estimate, FloatArray, IntArray, mean_estimate
from quorum_trainer.evaluation.reliability import assign_folds
from quorum_trainer.evaluation.scorings import Scoring

FLIPS = 2000
MOST_LUCK = 0.01


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen, and why.

    chosen: the mean, or `best`. best: highest gold on all pools. table: mean gold of the pick on all pools, by scoring.
    cross_validated: gold of the rule's choices on prompts it did not choose by. mean_gold: the mean's, on the same
    pools. advantage: cross_validated minus mean_gold, pool by pool. luck: see there. Intervals are over prompts.
    """

    chosen: Scoring
    best: Scoring
    reason: str
    table: dict[str, float]
    cross_validated: Estimate
    mean_gold: Estimate
    advantage: Estimate
    luck: float


def picked_gold(
    scorings: Sequence[Scoring], pools: Sequence[tuple[FloatArray, FloatArray]], n: int | None
) -> FloatArray:
    """Expected gold of the pick of every scoring in every pool.

    Args:
        scorings: S of them.
        pools: Q pools as (members (K, N), gold (N,)).
        n: candidates to pick from, at most the size of the smallest pool; None for each pool's own size.

    Returns:
        Shape (S, Q).
    """
    columns = []
    for index, (members, gold) in enumerate(pools):
        size = len(gold) if n is None else n
        # One set a pool: all scorings see the same subsets. Whole pools have none.
        orders = random_orders(len(gold), seed=index) if size < len(gold) else np.empty((0, 0), np.int64)
        columns.append([float(best_of_n_of(scoring, members, gold, [size], orders)[0]) for scoring in scorings])
    return np.array(columns).T


def select_scoring(scorings: Sequence[Scoring], values: FloatArray, clusters: IntArray) -> Selection:
    """Choose a scoring by the gold of its picks.

    Args:
        scorings: S of them, the mean first.
        values: gold of the pick, shape (S, Q).
        clusters: prompt of each pool, shape (Q,), numbered from 0 without gaps.
    """
    best = int(np.argmax(values.mean(axis=1)))
    candidate = one_standard_error_choice(values, clusters)
    judged = cross_validate(values, clusters)
    advantage = mean_estimate(judged - values[0], clusters)
    by_chance = luck(values, clusters, best)
    if candidate == 0:
        reason = "no scoring beats the mean by more than one standard error"
    elif advantage.low is None or advantage.low <= 0:
        candidate, reason = 0, f"{scorings[best].label} is best, but not surely so on prompts it was not chosen by"
    elif by_chance >= MOST_LUCK:
        candidate, reason = 0, f"{scorings[best].label} is best, but the best of so many may be so by chance"
    else:
        reason = "beats the mean by more than one standard error, and on prompts it was not chosen by"
    return Selection(
        chosen=scorings[candidate],
        best=scorings[best],
        reason=reason,
        table={scoring.label: float(gold) for scoring, gold in zip(scorings, values.mean(axis=1), strict=True)},
        cross_validated=mean_estimate(judged, clusters),
        mean_gold=mean_estimate(values[0], clusters),
        advantage=advantage,
        luck=by_chance,
    )


def one_standard_error_choice(values: FloatArray, clusters: IntArray) -> int:
    """The row with the highest mean, if it beats row 0 by more than one standard error of the difference; else 0.

    Args:
        values: shape (S, Q); row 0 is the simplest scoring.
        clusters: prompt of each pool, shape (Q,).
    """
    best = int(np.argmax(values.mean(axis=1)))
    difference = values[best] - values[0]
    return best if difference.mean() > standard_error(difference, clusters) else 0


def standard_error(values: FloatArray, clusters: IntArray) -> float:
    """Standard error of a mean over rows that come in clusters; infinite for a single cluster.

    The linearised one of a ratio of sums: sqrt(C/(C-1) * sum over clusters of (summed residuals)^2) / rows. With one
    row a cluster it is the usual std / sqrt(rows).
    """
    present, own = np.unique(clusters, return_inverse=True)
    if len(present) < 2:
        return float("inf")
    residuals = np.bincount(own, weights=values - values.mean())
    return float(np.sqrt(len(present) / (len(present) - 1) * np.sum(residuals**2)) / len(values))


def luck(values: FloatArray, clusters: IntArray, row: int) -> float:
    """How often chance alone would make some scoring beat the mean as clearly as `row` does.

    If a scoring and the mean were equally good, swapping the two on any prompt would change nothing: signs of the
    differences are flipped prompt by prompt, for all scorings alike, and the best of them is looked at each time
    (the single-step maxT of Westfall and Young 1993, so the number of scorings is paid for).

    Args:
        values: gold of the pick, shape (S, Q); row 0 is the mean's.
        clusters: prompt of each pool, shape (Q,).
        row: the scoring in question.

    Returns:
        A p-value, at least 1 / (1 + `FLIPS`).
    """
    _, own = np.unique(clusters, return_inverse=True)
    sums = np.array([np.bincount(own, weights=difference) for difference in values - values[0]])
    scale = np.sqrt((sums**2).sum(axis=1))
    scale[scale == 0] = 1.0  # never differs from the mean: 0 whatever the signs
    signs = np.random.default_rng(SEED).choice([-1.0, 1.0], size=(FLIPS, sums.shape[1]))
    by_chance = (signs @ sums.T / scale).max(axis=1)
    # What is as clear counts as clearer, whatever the order of summation.
    clearer = np.sum(by_chance >= sums[row].sum() / scale[row] - 1e-9)
    return float((1 + clearer) / (1 + FLIPS))


def cross_validate(values: FloatArray, clusters: IntArray) -> FloatArray:
    """Gold of the rule's choice on every pool, chosen on the prompts of other folds: (S, Q) -> (Q,).

    With a single prompt there are no others to choose on: the mean's.
    """
    judged: FloatArray = values[0].copy()
    if clusters.max() < 1:
        return judged
    folds = assign_folds(clusters)
    for fold in np.unique(folds):
        inside = folds == fold
        judged[inside] = values[one_standard_error_choice(values[:, ~inside], clusters[~inside])][inside]
    return judged
