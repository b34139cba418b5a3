"""Over-optimisation, seen from outside: uncertainty climbs while the reward that is optimised does. Pure.

    rewards, stds of the last steps  --look_for_overoptimisation-->  Sign, or None

A policy that leaves the text that the reward models know finds text on which they differ (Coste et al., arXiv
2310.02743, figure 2; arXiv 2401.16635, section 4.4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import linregress

from quorum_trainer.ppo.config import AlarmOptions


@dataclass(frozen=True, slots=True)
class Sign:
    """Of a window of steps. reward_t, std_t: t statistics of the slopes; std_rise: share by which the std rose."""

    reward_t: float
    std_t: float
    std_rise: float


def look_for_overoptimisation(
    rewards: Sequence[float], stds: Sequence[float | None], options: AlarmOptions
) -> Sign | None:
    """Whether both climb over the last `window` steps, each by more than chance, the std by a share that matters.

    Args:
        rewards: mean reward of each step so far.
        stds: mean std of each step so far; None where the ensemble has one member.
        options: window, t, rise.
    """
    paid, spread = rewards[-options.window :], stds[-options.window :]
    if len(paid) < options.window or any(value is None for value in spread):
        return None
    reward_t, _ = _trend(np.array(paid, dtype=float))
    std_t, rise = _trend(np.array(spread, dtype=float))
    if reward_t > options.t and std_t > options.t and rise > options.rise:
        return Sign(reward_t, std_t, rise)
    return None


def _trend(values: NDArray[np.float64]) -> tuple[float, float]:
    """(t of the slope, share by which the line rises from its first step to its last)."""
    steps = np.arange(len(values))
    line = linregress(steps, values)
    rise = line.slope * steps[-1]
    if line.stderr == 0:
        return math.copysign(math.inf, line.slope) if line.slope else 0.0, rise / max(abs(line.intercept), 1e-12)
    return float(line.slope / line.stderr), float(rise / max(abs(line.intercept), 1e-12))
