"""Best-of-N and best-of-4 figures, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quorum_trainer.evaluation.best_of import NUM_SUBSETS, best_of_n
from quorum_trainer.evaluation.pool_figures import pool_figures
from quorum_trainer.evaluation.scores import ScoredRow
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


def test_curves_have_every_n_that_all_pools_have() -> None:
    rng = np.random.default_rng(1)
    rows = [
        scored_row(rng.normal(size=(2, size)), rng.random(size), prompt=f"q{size}", tags={"subset": "xy"[size % 2]})
        for size in (10, 7, 9)
    ]
    figures = pool_figures(rows, [MEAN, Scoring("lcb", 1.0)], NAMES)
    curves = figures["all"]["curves"]
    assert curves["scorings"]["lcb@1"]["n"] == [1, 2, 3, 4, 5, 6, 7]
    assert curves["scorings"]["lcb@1/group"]["n"] == [1, 2, 3, 4, 6, 7]  # drawn: a ladder
    assert curves["num_subsets"] == NUM_SUBSETS
    assert figures["f: subset=x"]["curves"] is None
    # A curve is the mean of the pools' own, for gold and for length.
    for name, rewards in (("mean", lambda row: row.members.mean(axis=0)), ("m01", lambda row: row.members[1])):
        curve = (curves["scorings"] | curves["members"])[name]
        for value, of in (("gold", lambda row: row.row.gold), ("chars", lambda row: map(len, row.row.responses))):
            expected = [best_of_n(rewards(row), np.array([*of(row)], dtype=float), range(1, 8)) for row in rows]
            np.testing.assert_allclose(curve[value]["value"], np.mean(expected, axis=0), rtol=1e-12)
    # The table's figures are points of the curve.
    table = figures["all"]["scorings"]["lcb@1/group"]
    assert table["4"]["value"] == curves["scorings"]["lcb@1/group"]["gold"]["value"][3]
    assert table["4"]["chars"]["value"] == curves["scorings"]["lcb@1/group"]["chars"]["value"][3]
    for key in ("value", "low", "high"):
        assert table["4"][key] == pytest.approx(curves["scorings"]["lcb@1/group"]["gold"][key][3], rel=1e-12)


def test_a_single_prompt_has_no_band() -> None:
    curves = pool_figures([scored_row([[1, 0]])], [MEAN], ["m00"])["all"]["curves"]
    assert curves["scorings"]["mean"]["gold"] == {"value": [0.5, 1.0], "low": None, "high": None}


def one_policy(num_pools: int = 30, size: int = 40) -> list[ScoredRow]:
    rng = np.random.default_rng(2)
    return [scored_row(rng.normal(size=(2, size)), rng.random(size), prompt=f"q{index}") for index in range(num_pools)]


def test_one_policy_has_kl_rewards_and_fits() -> None:
    rows = one_policy()
    figures = pool_figures(rows, [MEAN, Scoring("lcb", 1.0)], NAMES, is_one_policy=True)["all"]
    policy, curves = figures["policy"], figures["curves"]
    assert policy["n"] == list(range(1, 41))
    assert policy["kl"][3] == pytest.approx(math.log(4) - 3 / 4)
    expected = [best_of_n(row.members.mean(axis=0), row.members.mean(axis=0), [1, 40]) for row in rows]
    reward = curves["scorings"]["mean"]["reward"]["value"]
    assert [reward[0], reward[-1]] == pytest.approx(list(np.mean(expected, axis=0)), rel=1e-12)
    assert set(policy["fits"]["scorings"]) == {"mean", "lcb@1", "lcb@1/group"}
    assert all(fit["num_sizes"] == 11 for fit in policy["fits"]["scorings"].values())
    has_reward = {name for kind in ("scorings", "members", "baselines") for name in curves[kind]
                  if "reward" in curves[kind][name]}  # fmt: skip
    assert has_reward == {"mean", "lcb@1", "m00", "m01"}  # not of baselines, nor relative to a group


def test_files_of_two_policies_are_fitted_apart() -> None:
    rows = [
        scored_row(row.members, row.row.gold, file="ab"[i % 2], prompt=f"q{i}") for i, row in enumerate(one_policy())
    ]
    figures = pool_figures(rows, [MEAN], NAMES, is_one_policy=True)
    assert figures["all"]["policy"] is None
    assert "reward" not in figures["all"]["curves"]["scorings"]["mean"]
    assert figures["a"]["policy"] is not None


def test_pools_of_several_systems_have_no_kl() -> None:
    figures = pool_figures(one_policy(), [MEAN], NAMES)["all"]
    assert figures["policy"] is None
    assert "reward" not in figures["curves"]["scorings"]["mean"]
