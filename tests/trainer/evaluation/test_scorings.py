"""Which scorings an evaluation compares, and what they make of scores."""

from __future__ import annotations

import numpy as np
import pytest

from quorum_client.errors import InvalidRequest
from quorum_client.modes import DEFAULT_BETA, MODES, aggregate
from quorum_model.calibration import center_group
from quorum_trainer.evaluation.scorings import MEAN, Scoring, beta_grid, choose_scorings


def test_rewards_are_those_of_the_server() -> None:
    members = np.random.default_rng(0).normal(size=(5, 7))
    centred, _ = center_group(members, [3] * 7)
    for mode in MODES:
        np.testing.assert_allclose(Scoring(mode, None).rewards(members), aggregate(members, mode), rtol=1e-12)
        # The same centring, in another order of summation.
        np.testing.assert_allclose(
            Scoring(mode, None, "group").rewards(members), aggregate(centred, mode), rtol=0, atol=1e-12
        )


def test_axes_between_are_groups_of_their_own() -> None:
    members = np.random.default_rng(1).normal(size=(3, 4, 5))
    scoring = Scoring("lcb", 2.0, "group")
    together = scoring.rewards(members)
    np.testing.assert_allclose(together, [scoring.rewards(members[:, group]) for group in range(4)], atol=1e-12)


def test_all_modes_and_the_bundles_own_by_default() -> None:
    chosen = choose_scorings([], [], 5, Scoring("lcb", 0.25))
    assert [scoring.label for scoring in chosen] == [
        "mean", "lcb@1", "uwo@0.5", "softmin@1", "min", "median", "lcb@0.25",
    ]  # fmt: skip
    assert choose_scorings([], [], 1) == [MEAN]


def test_asked_modes_at_asked_betas() -> None:
    chosen = choose_scorings(["lcb", "min"], [0.5, 2.0], 3)
    assert [scoring.label for scoring in chosen] == ["mean", "lcb@0.5", "lcb@2", "min"]


@pytest.mark.parametrize(
    ("modes", "betas", "members", "message"),
    [
        (["best"], [], 3, "mode: unknown"),
        (["lcb"], [-1.0], 3, "beta"),
        (["lcb"], [float("nan")], 3, "beta"),
        (["lcb"], [], 1, "at least 2 members"),
        (["min"], [1.0], 3, "beta: none of the modes"),
    ],
)
def test_impossible_requests(modes: list[str], betas: list[float], members: int, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        choose_scorings(modes, betas, members)


def test_the_grid_is_the_mean_then_every_mode_around_its_default() -> None:
    grid = beta_grid()
    assert grid[0] == Scoring("mean", None, "group")
    assert {scoring.mode for scoring in grid} == set(MODES)
    assert len(set(grid)) == len(grid) == 3 + 3 * 7
    for mode, default in DEFAULT_BETA.items():
        betas = [scoring.beta for scoring in grid if scoring.mode == mode]
        assert betas == pytest.approx([default * factor for factor in (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)])
