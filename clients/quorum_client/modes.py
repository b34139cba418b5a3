"""How K calibrated member scores become one reward: the modes, in numpy, for server and offline use alike.

    members (K, B)  --aggregate(mode, beta)-->  rewards (B,)

Shapes: `K` members, `B` sequences. std and var are the sample ones (ddof = 1) everywhere in Quorum.
Knows no HTTP and no torch; the server uses this file, and users re-aggregate a response's `members` with it.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from quorum_client.errors import InvalidRequest

Mode = Literal["mean", "lcb", "uwo", "softmin", "min", "median"]
MODES: tuple[Mode, ...] = get_args(Mode)

DEFAULT_BETA: dict[Mode, float] = {"lcb": 1.0, "uwo": 0.5, "softmin": 1.0}
"""The modes that take a beta, and its value when the caller gives none."""

_NEEDS_TWO_MEMBERS: frozenset[Mode] = frozenset({"lcb", "uwo"})

FloatArray = NDArray[np.float64]


def resolve_beta(mode: Mode, beta: float | None) -> float | None:
    """Check `beta` for `mode` and fill in the default.

    Returns:
        The beta to use; None for the modes that take none, whatever was given: sweeping modes at one beta is
        common, and every answer names the beta that it used.

    Raises:
        InvalidRequest: mode unknown; beta negative, NaN or infinite.
    """
    if mode not in MODES:
        raise InvalidRequest(f"unknown mode; expected one of {', '.join(MODES)}")
    if beta is not None and (not math.isfinite(beta) or beta < 0):
        raise InvalidRequest("beta must be a finite number >= 0")
    if mode not in DEFAULT_BETA:
        return None
    return DEFAULT_BETA[mode] if beta is None else float(beta)


def require_members(mode: Mode, num_members: int) -> None:
    """Refuse a mode that needs a spread where there is none.

    Raises:
        InvalidRequest: `mode` needs std or var and there are fewer than two members.
    """
    if mode in _NEEDS_TWO_MEMBERS and num_members < 2:
        raise InvalidRequest(
            f"mode '{mode}' needs at least 2 members; this ensemble has {num_members}, so its std is undefined"
        )


def mean(members: FloatArray) -> FloatArray:
    """Mean over members: (K, B) -> (B,)."""
    result: FloatArray = np.mean(members, axis=0)
    return result


def std(members: FloatArray) -> FloatArray | None:
    """Sample standard deviation over members (ddof = 1).

    Args:
        members: shape (K, B).

    Returns:
        Shape (B,), or None where K = 1 and the spread is undefined.
    """
    if members.shape[0] < 2:
        return None
    result: FloatArray = np.std(members, axis=0, ddof=1)
    return result


def aggregate(members: Any, mode: Mode = "mean", beta: float | None = None) -> FloatArray:
    """Combine the members' scores of each sequence into one reward.

    - mean, min, median: as named.
    - lcb: mean - beta * std (lower confidence bound; arXiv 2401.16635, section 3).
    - uwo: mean - beta * var (uncertainty-weighted optimisation; Coste et al., arXiv 2310.02743, eq. 3).
    - softmin: -(1/beta) * log mean_k exp(-beta * r_k); beta 0 gives the mean, beta towards infinity the min.

    Args:
        members: float array-like, shape (K, B) or (K,), member-major.
        mode: one of `MODES`.
        beta: see `DEFAULT_BETA`; None takes the default of the mode.

    Returns:
        float64, shape (B,) (or a 0-d array for input of shape (K,)).

    Raises:
        InvalidRequest: beta does not fit the mode, or the mode needs two members and there is one.
    """
    scores = np.asarray(members, dtype=np.float64)
    if scores.ndim == 0 or scores.shape[0] == 0:
        raise InvalidRequest("members must have shape (K, ...) with K >= 1")
    beta = resolve_beta(mode, beta)
    require_members(mode, scores.shape[0])
    match mode:
        case "mean":
            return mean(scores)
        case "min":
            return np.asarray(np.min(scores, axis=0))
        case "median":
            return np.asarray(np.median(scores, axis=0))
        case "lcb":
            return np.asarray(mean(scores) - beta * np.std(scores, axis=0, ddof=1))
        case "uwo":
            return np.asarray(mean(scores) - beta * np.var(scores, axis=0, ddof=1))
        case "softmin":
            return _softmin(scores, beta or 0.0)


def _softmin(scores: FloatArray, beta: float) -> FloatArray:
    """-(1/beta) log mean exp(-beta r), without overflow or the 0/0 near beta = 0.

    With c = beta * (mean - r_k), softmin = mean - log(mean_k e^c_k) / beta; since mean_k c_k = 0,
    log mean e^c = log1p(mean(e^c - 1 - c)), and the bracket is computed without cancellation: the result
    goes smoothly to the mean as beta goes to 0. For large beta the minimum is factored out instead.
    """
    centre = mean(scores)
    if beta == 0.0:
        return centre
    with np.errstate(over="ignore", invalid="ignore"):
        exponent = beta * (centre - scores)
        largest = np.max(exponent, axis=0)
        small = np.log1p(np.mean(np.expm1(exponent) - exponent, axis=0))
        large = largest + np.log(np.mean(np.exp(exponent - largest), axis=0))
        result = centre - np.where(largest < 1.0, small, large) / beta
    return np.where(np.isfinite(exponent).all(axis=0), result, np.min(scores, axis=0))
