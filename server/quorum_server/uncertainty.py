"""What the members' scores of a request say of the ensemble's uncertainty: pure arithmetic, for the metrics.

    Prepared, raw (K, S)  --calibrate_texts-->  calibrated (K, N) and groups (N,)
    groups                --rank_disagreement-->  one number a group
    means, bundle's histogram  --score_drift-->  one number

Calibrated and not centred, whatever the request asked for: only so are they comparable with the bundle's reference
statistics and with each other. Knows no names of metrics.

Shapes: `K` members, `S` sequences, `N` texts, `G` groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorum_model.bundle.manifest import Manifest, ReferenceStats
from quorum_model.calibration import normalize
from quorum_model.scoring import PreparedComparisons, PreparedRewards

FloatArray = NDArray[np.float64]

MAX_COMPARED = 64
"""Candidates of one prompt that are compared with each other: their pairs grow as the square."""


@dataclass(frozen=True, slots=True)
class CalibratedTexts:
    """scores: (K, N), finite. groups: (N,), equal for texts of one prompt."""

    scores: FloatArray
    groups: NDArray[np.int64]


def calibrate_texts(
    manifest: Manifest, prepared: PreparedRewards | PreparedComparisons, raw: NDArray[np.floating[Any]]
) -> CalibratedTexts:
    """The calibrated scores of what was asked for, references left out and duplicates counted.

    Args:
        manifest: of the ensemble.
        prepared: the request.
        raw: (K, S), before calibration. A text that a member's score is not finite for is left out.
    """
    if isinstance(prepared, PreparedComparisons):
        texts = [text for pair in prepared.pairs for text in pair]
        numbers = [number for number in range(len(prepared.pairs)) for _ in range(2)]
    else:
        texts, numbers = prepared.items, prepared.groups
    known = [(text.column, number) for text, number in zip(texts, numbers, strict=True) if text.column is not None]
    columns = np.array([column for column, _ in known], dtype=np.int64)
    groups = np.array([number for _, number in known], dtype=np.int64)
    scores = raw[:, columns].astype(np.float64)
    usable = np.isfinite(scores).all(axis=0)
    calibrations = [member.calibration for member in manifest.members]
    calibrated = normalize(scores[:, usable], [c.mean for c in calibrations], [c.scale for c in calibrations])
    return CalibratedTexts(calibrated, groups[usable])


def rank_disagreement(texts: CalibratedTexts) -> FloatArray:
    """How differently the members order the candidates of each prompt: 0 where all agree, 1/2 for orders by chance.

    The mean, over the pairs of members, of the normalised Kendall distance between their orders (Kendall 1938): the
    share of pairs of candidates that the two order oppositely, a pair that one of them ties counting one half
    (K^(p) with p = 1/2 in Fagin et al., Comparing and aggregating rankings with ties, PODS 2004).

    Returns:
        Shape (G,): of every group of two or more, of its first `MAX_COMPARED` candidates. Empty with one member.
    """
    num_members, num_texts = texts.scores.shape
    if num_members < 2 or num_texts < 2:
        return np.empty(0)
    order = np.argsort(texts.groups, kind="stable")
    _, starts, sizes = np.unique(texts.groups[order], return_index=True, return_counts=True)
    distances = []
    for size in np.unique(np.minimum(sizes, MAX_COMPARED)):
        if size < 2:
            continue
        own = starts[np.minimum(sizes, MAX_COMPARED) == size]
        scores = texts.scores[:, order[own[:, None] + np.arange(size)]]  # (K, groups of this size, size)
        # How many members score the second candidate below the first.
        above = np.zeros((len(own), size, size), np.int32)
        for member in scores:
            above += member[:, :, None] > member[:, None, :]
        below = above.transpose(0, 2, 1)
        # Ordered pairs of members that are opposed, of K (K - 1): wholly, or by half where one of them ties.
        opposed = 2 * above * below + (num_members - above - below) * (above + below)
        # Each pair of candidates stands there twice, and a candidate is no pair with itself (above and below are 0).
        distances.append(opposed.sum(axis=(1, 2)) / (num_members * (num_members - 1) * size * (size - 1)))
    return np.concatenate(distances) if distances else np.empty(0)


def score_drift(reference: ReferenceStats, means: FloatArray | Sequence[float]) -> float:
    """How far the distribution of recent scores is from the bundle's: Kolmogorov-Smirnov's statistic, from 0 to 1.

    The largest difference between the two shares of scores that lie below an edge of the reference's histogram. The
    reference counts nothing beyond its outermost edges (0.1 % on each side).

    Args:
        reference: the bundle's; with at least one count.
        means: calibrated mean scores, at least one.
    """
    counts = np.cumsum(reference.score_counts)
    expected = np.concatenate([[0.0], counts / counts[-1]])
    scores, edges = np.asarray(means, np.float64), np.asarray(reference.score_edges, np.float64)
    inside = np.cumsum(np.histogram(scores, bins=edges)[0])
    found = (np.count_nonzero(scores < edges[0]) + np.concatenate([[0], inside])) / len(scores)
    return float(np.abs(found - expected).max())


def has_histogram(reference: ReferenceStats | None) -> bool:
    """Whether a bundle's reference holds a histogram that scores can be compared with."""
    if reference is None or len(reference.score_edges) != len(reference.score_counts) + 1:
        return False
    rises = bool((np.diff(reference.score_edges) > 0).all())
    return rises and min(reference.score_counts, default=-1) >= 0 and sum(reference.score_counts) > 0
