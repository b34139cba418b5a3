"""RM-Bench's matrix: does content or style win (arXiv 2410.16184, section 3).

    rewards of three styles of a right and a wrong answer (P, 6)  --style_shares-->  3 x 3 shares by prompt

Styles from plain to rich: concise, detailed plain, detailed markdown. Rows of the matrix are the chosen answer's style,
columns the rejected one's. Knows no files and no modes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

STYLES = ("concise", "detailed", "markdown")
NUM_STYLES = len(STYLES)
LEVELS = ("easy", "normal", "hard")


def win_shares(difference: NDArray[np.floating]) -> FloatArray:
    """1 where positive, 0 where negative, one half where equal."""
    return np.asarray((np.sign(difference) + 1) / 2, dtype=np.float64)


def style_shares(rewards: FloatArray) -> FloatArray:
    """Who wins in each of the nine comparisons.

    Args:
        rewards: shape (P, 6): the chosen answer in three styles, then the rejected one in three.

    Returns:
        Shape (P, 3, 3): [p, i, j] is 1 where chosen in style i beats rejected in style j, one half for a tie.
    """
    return win_shares(rewards[:, :NUM_STYLES, None] - rewards[:, None, NUM_STYLES:])


def level_shares(shares: FloatArray) -> dict[str, FloatArray]:
    """Shares by difficulty, a prompt at a time.

    Args:
        shares: see `style_shares`, shape (P, 3, 3).

    Returns:
        easy (the chosen answer has the richer style), normal (the same), hard (the plainer one), and their average:
        shape (P,) each.
    """
    styles = np.arange(NUM_STYLES)
    masks = {
        "easy": styles[:, None] > styles[None, :],
        "normal": styles[:, None] == styles[None, :],
        "hard": styles[:, None] < styles[None, :],
    }
    levels = {name: np.asarray(shares[:, mask].mean(axis=1)) for name, mask in masks.items()}
    return levels | {"average": np.mean([levels[name] for name in LEVELS], axis=0)}
