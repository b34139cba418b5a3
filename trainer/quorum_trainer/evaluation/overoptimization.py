"""How far a reward can be optimised before gold falls: Gao's law for the best of n samples of one policy.

    gold of the pick by n, and its resamples  --gao_fit-->  alpha, beta, where gold peaks

Best-of-n moves a policy by KL(n) = log n - (n - 1) / n nats, and with d = sqrt(KL) its gold is
R(d) = R(0) + d (alpha - beta d) (Gao et al. 2022, arXiv 2210.10760). Holds for samples of one policy alone: among
answers of many systems there is no policy that moves. Knows no scores and no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quorum_trainer.evaluation.bootstrap import FloatArray, interval

MIN_SIZES = 3
"""Fewer n above 1 than this leave nothing that could contradict two parameters."""


def kl_of_best_of(sizes: Sequence[int]) -> FloatArray:
    """KL from the policy to its best of n: log n - (n - 1) / n in nats, shape (M,).

    An upper bound where samples repeat (Beirami et al., arXiv 2401.01879).
    """
    n = np.array(sizes, dtype=np.float64)
    return np.asarray(np.log(n) - (n - 1) / n)


def fit_gao(sizes: Sequence[int], curves: FloatArray) -> FloatArray:
    """Fit alpha and beta by least squares, the curve's value at n = 1 taken as R(0).

    Args:
        sizes: M of them, 1 first; evenly spread over log n, as all points weigh alike.
        curves: shape (..., M).

    Returns:
        Shape (..., 2): alpha, beta.
    """
    d = np.sqrt(kl_of_best_of(sizes))[1:]
    gains = curves[..., 1:] - curves[..., :1]
    return np.asarray(gains @ np.linalg.pinv(np.stack([d, -(d**2)], axis=1)).T)


def gao_figures(sizes: Sequence[int], curve: FloatArray, resampled: FloatArray) -> dict[str, Any] | None:
    """The fit as the report has it; None where there are too few sizes.

    Points of one curve come from the same samples, so the residuals' spread (what `scipy.optimize.curve_fit` goes by)
    says nothing of how sure the fit is: it is repeated on every resample of the prompts.

    Args:
        sizes: M of them, 1 first.
        curve: gold of the pick, shape (M,).
        resampled: on each resample of the prompts, shape (R, M); NaN for a single prompt.
    """
    if len(sizes) <= MIN_SIZES:
        return None
    alpha, beta = fit_gao(sizes, curve)
    fits = fit_gao(sizes, resampled)
    d = np.sqrt(kl_of_best_of(sizes))
    fitted = curve[0] + d * (alpha - beta * d)
    total = float(np.sum((curve - curve.mean()) ** 2))
    return {
        "r0": float(curve[0]),
        "alpha": _with_error(float(alpha), fits[:, 0]),
        "beta": _with_error(float(beta), fits[:, 1]),
        # Where d = alpha / (2 beta); a straight or rising curve has no peak.
        "peak_kl": float((alpha / (2 * beta)) ** 2) if alpha > 0 and beta > 0 else None,
        "r_squared": 1 - float(np.sum((curve - fitted) ** 2)) / total if total > 0 else None,
        "num_sizes": len(sizes),
    }


def _with_error(value: float, fits: FloatArray) -> dict[str, float | None]:
    known = bool(np.isfinite(fits).all())
    error = float(fits.std(ddof=1)) if known else None
    return {**interval(value, fits).to_json(), "standard_error": error}
