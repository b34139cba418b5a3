"""How far the scores of another dtype stand from those of fp32, in calibrated units, and whether orders survive.

    calibrated (K, B) twice, pairs (P, 2)  --parity_figures-->  a JSON object

What "good enough" means is fixed here: 99 % of differences within 0.05 of a member's scale, for every member, the mean
and the std, and every pair in its order whose margin is beyond 0.1. Pure arithmetic. Shapes: `K` members, `B` texts,
`P` pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LARGEST_DIFFERENCE = 0.05
"""Of the 99th percentile, in units of a member's calibrated scale."""
CLEAR_MARGIN = 0.1
"""Pairs with a larger fp32 margin must keep their order; calibrated units, as the mean's."""


def difference_percentiles(exact: FloatArray, other: FloatArray) -> dict[str, float]:
    """p50, p99 and max of |other - exact|.

    Args:
        exact: shape (B,).
        other: shape (B,).
    """
    differences = np.abs(other - exact)
    p50, p99 = np.quantile(differences, [0.5, 0.99])
    return {"p50": float(p50), "p99": float(p99), "max": float(differences.max())}


def orders_kept(exact: FloatArray, other: FloatArray, pairs: NDArray[np.int64]) -> dict[str, Any]:
    """How many pairs with a clear margin come out in the same order.

    Args:
        exact: means over members, shape (B,).
        other: the same in the other dtype.
        pairs: indices of two texts each, shape (P, 2).

    Returns:
        pairs; clear_pairs, those beyond `CLEAR_MARGIN`; kept, the share of them in the same order (null where there
        are none). A margin that has become zero is no order.
    """
    before, after = (scores[pairs[:, 0]] - scores[pairs[:, 1]] for scores in (exact, other))
    is_clear = np.abs(before) > CLEAR_MARGIN
    kept = np.sign(before[is_clear]) == np.sign(after[is_clear])
    return {
        "pairs": len(pairs),
        "clear_pairs": int(is_clear.sum()),
        "kept": float(kept.mean()) if is_clear.any() else None,
    }


def parity_figures(
    exact: FloatArray, other: FloatArray, pairs: NDArray[np.int64], names: Sequence[str]
) -> dict[str, Any]:
    """All figures, and whether they pass.

    Args:
        exact: calibrated fp32 scores, shape (K, B).
        other: the same in the other dtype.
        pairs: indices of two texts of one prompt each, shape (P, 2).
        names: of the members.

    Returns:
        JSON-ready: `members` by name, `mean`, `std` (ddof 1; null with one member), `order`, `passes`.
    """
    members = {name: difference_percentiles(exact[k], other[k]) for k, name in enumerate(names)}
    mean = difference_percentiles(exact.mean(axis=0), other.mean(axis=0))
    std = None
    if len(exact) > 1:
        std = difference_percentiles(exact.std(axis=0, ddof=1), other.std(axis=0, ddof=1))
    order = orders_kept(exact.mean(axis=0), other.mean(axis=0), pairs)
    judged = [*members.values(), mean, *([std] if std is not None else [])]
    passes = all(own["p99"] <= LARGEST_DIFFERENCE for own in judged) and order["kept"] in (None, 1.0)
    return {"members": members, "mean": mean, "std": std, "order": order, "passes": passes}
