"""Ways of making one reward of K member scores that an evaluation compares: mode, beta, centring.

    members (K, N) of one prompt  --Scoring.rewards-->  rewards (N,)

Knows no files and no bundles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quorum_client.errors import InvalidRequest
from quorum_client.modes import DEFAULT_BETA, MODES, Mode, aggregate, require_members, resolve_beta

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scoring:
    """beta: None for the modes that take none. center: see design section 2, among the candidates of one prompt."""

    mode: Mode
    beta: float | None = None
    center: Literal["none", "group"] = "none"

    @property
    def label(self) -> str:
        """Its key in a report: mean, lcb@1, lcb@1/group."""
        beta = "" if self.beta is None else f"@{self.beta:g}"
        return f"{self.mode}{beta}{'/group' if self.center == 'group' else ''}"

    def rewards(self, members: FloatArray) -> FloatArray:
        """One reward a candidate.

        Args:
            members: calibrated scores of the candidates of one prompt, shape (K, ..., N); axes between are other
                groups of candidates.

        Returns:
            Shape (..., N).
        """
        if self.center == "group":
            members = members - members.mean(axis=-1, keepdims=True)
        return aggregate(members, self.mode, self.beta)

    def to_json(self) -> dict[str, Any]:
        """As the report has it."""
        return {"mode": self.mode, "beta": self.beta, "center": self.center}


MEAN = Scoring("mean")


def choose_scorings(
    modes: Sequence[str], betas: Sequence[float], num_members: int, default: Scoring = MEAN
) -> list[Scoring]:
    """The scorings to compare: the mean first, then every asked mode at every asked beta, uncentred.

    Args:
        modes: those asked for; if none, all that the ensemble has members for, and the bundle's default.
        betas: for the modes that take one; if none, each mode's default.
        num_members: K.
        default: the bundle's.

    Raises:
        InvalidRequest: an unknown mode or a beta out of range; a mode asked for that needs more members; a beta that
            none of the modes takes.
    """
    chosen = [MEAN]
    for name in modes:
        _check_mode(name, num_members)
    available = [mode for mode in MODES if mode in modes or (not modes and _is_distinct(mode, num_members))]
    if betas and not any(mode in DEFAULT_BETA for mode in available):
        raise InvalidRequest("beta: none of the modes takes one")
    for mode in available:
        given: Sequence[float | None] = betas or [None]
        chosen += [Scoring(mode, resolve_beta(mode, beta)) for beta in given]
    if not modes:
        chosen.append(default)
    return list(dict.fromkeys(chosen))


def beta_grid() -> list[Scoring]:
    """What calibration chooses from: every mode, betas at powers of two from an eighth to eight times the default.

    Centred by group, as POST /rank does; the mean first. For two members or more.
    """
    grid = [Scoring(mode, None, "group") for mode in MODES if mode not in DEFAULT_BETA]
    grid += [
        Scoring(mode, default * 2.0**power, "group") for mode, default in DEFAULT_BETA.items() for power in range(-3, 4)
    ]
    grid.sort(key=lambda scoring: scoring.mode != "mean")
    return grid


def _is_distinct(mode: Mode, num_members: int) -> bool:
    """With one member every mode that exists is the mean."""
    return num_members > 1 or mode == "mean"


def _check_mode(name: str, num_members: int) -> None:
    if name not in MODES:
        raise InvalidRequest(f"mode: unknown; expected one of {', '.join(MODES)}")
    require_members(name, num_members)
