"""Intervals of figures over prompts: the cluster bootstrap, vectorised over its resamples.

    values by row + the prompt of each row  --resample prompts with replacement-->  Estimate

Rows of one prompt depend on each other, so prompts are drawn and not rows: drawing rows would make the intervals of
many pairs a prompt too narrow. Seeded: the same rows give the same interval. Percentile intervals (Efron and Tibshirani
1993, section 13.3). Knows no scores and no files.

Shapes: `P` rows, `C` prompts (clusters), `R` resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with the ends of its interval; they are None where resampling says nothing (a single prompt)."""

    value: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        """As the report has it."""
        return {"value": self.value, "low": self.low, "high": self.high}


def cluster_ids(keys: Sequence[str]) -> IntArray:
    """Number the distinct keys by first appearance: shape (P,), values 0 to C - 1."""
    number = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], dtype=np.int64)


def resampled_counts(num_clusters: int, stream: int = 0) -> IntArray:
    """How often each prompt is drawn in each resample: shape (R, C), rows that sum to C; other streams, other draws."""
    rng = np.random.default_rng([SEED, stream])
    return rng.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=RESAMPLES).astype(np.int64)


def interval(value: float, resampled: FloatArray) -> Estimate:
    """The percentile interval of a figure.

    Args:
        value: on the rows as they are.
        resampled: on each resample, shape (R,); NaN where the figure does not exist there.
    """
    known = resampled[np.isfinite(resampled)]
    if len(known) < len(resampled) / 2:
        return Estimate(value, None, None)
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def resampled_means(values: FloatArray, clusters: IntArray, stream: int = 0) -> FloatArray:
    """The mean over rows in each resample of the prompts: shape (R, ...); all NaN for a single prompt.

    Args:
        values: shape (P, ...); further axes are other figures of the same rows.
        clusters: shape (P,), see `cluster_ids`.
        stream: one each for sets of prompts whose figures are added up and must vary independently.
    """
    sizes = np.bincount(clusters)
    if len(sizes) < 2:
        return np.full((RESAMPLES, *values.shape[1:]), np.nan)
    sums = np.zeros((len(sizes), *values.shape[1:]))
    np.add.at(sums, clusters, values)
    counts = resampled_counts(len(sizes), stream)
    drawn = (counts @ sizes).reshape(-1, *[1] * (values.ndim - 1))
    result: FloatArray = np.tensordot(counts, sums, axes=1) / drawn
    return result


def mean_estimate(values: FloatArray, clusters: IntArray) -> Estimate:
    """The mean over rows, with its interval over prompts; see `resampled_means`."""
    return interval(float(values.mean()), resampled_means(values, clusters))


def band(values: FloatArray, clusters: IntArray) -> dict[str, list[float] | None]:
    """A curve with a pointwise interval at each of its M points, as the report has it.

    Args:
        values: shape (P, M).
        clusters: shape (P,).

    Returns:
        value, low and high, M numbers each; low and high are None for a single prompt.
    """
    resampled = resampled_means(values, clusters)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    is_known = bool(np.isfinite(resampled).all())
    return {
        "value": values.mean(axis=0).tolist(),
        "low": low.tolist() if is_known else None,
        "high": high.tolist() if is_known else None,
    }
