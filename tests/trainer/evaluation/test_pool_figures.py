"""Best-of-N and best-of-4 figures, by hand."""

from __future__ import annotations

import pytest

from quorum_trainer.evaluation.pool_figures import pool_figures
from quorum_trainer.evaluation.scorings import MEAN, Scoring
from tests.trainer.evaluation.scored_rows import scored_row

NAMES = ["m00", "m01"]


def test_gold_of_the_pick_by_hand() -> None:
    # Means 2, 1, 0. Of two: candidates 0 and 1 give 0.7, 0 and 2 give 0.7, 1 and 2 give 0.2.
    rows = [scored_row([[3, 1, 0], [1, 1, 0]], [0.7, 0.2, 0.3], responses=("a", "bbb", "cc"))]
    figures = pool_figures(rows, [MEAN], NAMES)["all"]
    mean = {n: one["value"] for n, one in figures["scorings"]["mean"].items()}
    assert mean == pytest.approx({"1": 0.4, "2": 1.6 / 3, "full": 0.7})
    baselines = {name: by_size["full"]["value"] for name, by_size in figures["baselines"].items()}
    assert baselines == pytest.approx({"random": 0.4, "longest": 0.2, "shortest": 0.7, "oracle": 0.7})
    assert figures["baselines"]["longest"]["2"]["value"] == pytest.approx((0.2 + 0.2 + 0.3) / 3)
    assert figures["members"]["m01"]["full"]["value"] == pytest.approx(0.45)  # its tie at the top is shared
    assert (figures["num_pools"], figures["smallest_pool"], figures["largest_pool"]) == (1, 3, 3)


def test_best_of_four_is_the_share_of_chosen_picks() -> None:
    gold = [1, 0, 0, 0]
    rows = [
        scored_row([[5, 1, 2, 3]], gold, prompt="a", tags={"subset": "x"}),
        scored_row([[0, 1, 2, 3]], gold, prompt="b", tags={"subset": "x"}),
        scored_row([[3, 3, 2, 1]], gold, prompt="c", tags={"subset": "y"}),  # shared by two
        scored_row([[0, 0, 0, 0]], gold, prompt="d", tags={"subset": "y"}),  # shared by four
    ]
    figures = pool_figures(rows, [MEAN], ["m00"])
    assert figures["all"]["scorings"]["mean"]["full"]["value"] == pytest.approx((1 + 0 + 0.5 + 0.25) / 4)
    assert figures["all"]["baselines"]["random"]["full"]["value"] == 0.25
    assert figures["f: subset=x"]["scorings"]["mean"]["full"]["value"] == 0.5
    assert figures["f: subset=y"]["scorings"]["mean"]["full"]["value"] == pytest.approx(0.375)


def test_modes_are_shown_uncentred_and_by_group() -> None:
    # Member offsets that differ by 10 within the pool's prompt: uncentred, min is member 0's score.
    rows = [scored_row([[0.0, 1.0, 2.0], [13.0, 11.0, 10.9]], [0.0, 0.5, 1.0])]
    scorings = pool_figures(rows, [MEAN, Scoring("min")], NAMES)["all"]["scorings"]
    assert set(scorings) == {"mean", "min", "min/group"}
    assert scorings["min"]["full"]["value"] == 1.0
    # Centred: member 0 is -1, 0, 1 and member 1 is 1.37, -0.63, -0.73: minima -1, -0.63, -0.73.
    assert scorings["min/group"]["full"]["value"] == 0.5


def test_smaller_pools_leave_the_larger_n() -> None:
    rows = [
        scored_row([[1, 0]], [1, 0], prompt="a"),
        scored_row([[1, 0, 0, 0, 0]], [0, 1, 1, 1, 1], prompt="b"),
    ]
    mean = pool_figures(rows, [MEAN], ["m00"])["all"]["scorings"]["mean"]
    assert {n: one["num_pools"] for n, one in mean.items()} == {"1": 2, "2": 2, "4": 1, "full": 2}
    assert mean["full"]["value"] == 0.5
    assert mean["4"]["value"] == pytest.approx(0.2)  # four of five subsets hold the first candidate
