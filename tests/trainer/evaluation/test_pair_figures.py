"""Figures of pairs, worked out by hand."""

from __future__ import annotations

from statistics import stdev

import numpy as np
import pytest

from quorum_trainer.evaluation.pair_figures import Pairs, pair_figures, relative_spread
from quorum_trainer.evaluation.scorings import MEAN, Scoring
from tests.trainer.evaluation.scored_rows import scored_row

NAMES = ["m00", "m01"]

# (chosen, rejected) by member. Margins: (2, 4), (1, -2), (-1, -1), (1, -1): means 3, -0.5, -1, 0.
ROWS = [
    scored_row([[3, 1], [4, 0]], prompt="a", tags={"subset": "x"}),
    scored_row([[1, 0], [0, 2]], prompt="a", tags={"subset": "x"}),
    scored_row([[0, 1], [0, 1]], prompt="b", tags={"subset": "y"}, responses=("long", "long")),
    scored_row([[1, 0], [0, 1]], prompt="c", tags={"subset": "y"}, responses=("longest", "long")),
]


def test_accuracy_by_hand() -> None:
    figures = pair_figures(ROWS, [MEAN, Scoring("lcb", 1.0), Scoring("min")], 1.0, NAMES)
    everything = figures["all"]
    assert (everything["num_pairs"], everything["num_prompts"]) == (4, 3)
    accuracy = everything["accuracy"]
    assert accuracy["members"]["m00"]["value"] == 0.75
    assert accuracy["members"]["m01"]["value"] == 0.25
    assert accuracy["members_average"] == 0.5
    # A tie of the mean counts one half.
    assert accuracy["scorings"]["mean"]["value"] == 0.375
    # lcb (std of two values: |difference| / sqrt(2)): 3.5 - 0.71 > 0.5 - 0.71; 0.5 - 0.71 < 1 - 1.41 is false;
    # 0 < 1; and 0.5 - 0.71 on both sides, a tie.
    assert accuracy["scorings"]["lcb@1"]["value"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    # min: 3 > 0, 0 = 0, 0 < 1, 0 = 0.
    assert accuracy["scorings"]["min"]["value"] == 0.5
    # Lengths 1 and 2 twice, equal, 7 and 4.
    assert accuracy["baselines"]["longer"]["value"] == (0 + 0 + 0.5 + 1) / 4
    assert accuracy["baselines"]["shorter"]["value"] == (1 + 1 + 0.5 + 0) / 4
    assert accuracy["baselines"]["random"]["value"] == 0.5


def test_parts_of_a_file_have_accuracy_alone() -> None:
    figures = pair_figures(ROWS, [MEAN], 1.0, NAMES)
    assert list(figures) == ["all", "f: subset=x", "f: subset=y"]
    assert figures["f: subset=x"]["accuracy"]["scorings"]["mean"]["value"] == 0.5
    assert set(figures["f: subset=x"]) == {"num_pairs", "num_prompts", "accuracy"}


def test_uncertainty_is_of_the_margin_and_of_the_scores() -> None:
    uncertainty = pair_figures(ROWS, [MEAN], 1.0, NAMES)["all"]["uncertainty"]
    margin_std = [stdev([2, 4]), stdev([1, -2]), 0.0, stdev([1, -1])]
    score_std = [(stdev(chosen) + stdev(rejected)) / 2 for chosen, rejected in (row.members.T.tolist() for row in ROWS)]
    for name, expected in (("margin_std", margin_std), ("score_std", score_std)):
        assert [one["uncertainty_mean"] for one in uncertainty[name]["deciles"]] == pytest.approx(sorted(expected))
    assert [one["uncertainty_mean"] for one in uncertainty["closeness"]["deciles"]] == [-3, -1, -0.5, 0]
    # Wrong: the second, third and (a tie is not right) fourth. AUROC of margin std: right is 1.414; above it lies
    # 2.12, equal 1.414, below 0: (1 + 0.5 + 0) / 3.
    assert uncertainty["margin_std"]["auroc"]["value"] == pytest.approx(0.5)
    assert uncertainty["closeness"]["auroc"]["value"] == 1.0
    # Against the size of the mean margin: 1.41 of 3, 2.12 of 0.5, 0 of 1, 1.41 of 0; two of three wrong ones lie above.
    relative = [one / (one + size) for one, size in zip(margin_std, (3, 0.5, 1, 0), strict=True)]
    measured = [one["uncertainty_mean"] for one in uncertainty["relative_std"]["deciles"]]
    assert measured == pytest.approx(sorted(relative))
    assert uncertainty["relative_std"]["auroc"]["value"] == pytest.approx(2 / 3)


def test_relative_spread_ranks_as_the_ratio_does() -> None:
    rng = np.random.default_rng(0)
    spread, mean = rng.random(50), rng.normal(size=50)
    ranks = np.argsort(relative_spread(spread, mean))
    assert ranks.tolist() == np.argsort(spread / np.abs(mean)).tolist()
    # No spread: certain; no mean: as uncertain as can be, also where all members call it a tie.
    assert relative_spread(np.array([0.0, 2.0, 0.0]), np.array([-1.0, 0.0, 0.0])).tolist() == [0.0, 1.0, 1.0]


def test_an_offset_of_a_prompt_moves_score_std_and_not_margin_std() -> None:
    offset = np.array([[0.0], [100.0]])
    moved = [scored_row(row.members + offset, prompt=row.row.prompt) for row in ROWS]
    plain, shifted = (pair_figures(rows, [MEAN], 1.0, NAMES)["all"]["uncertainty"] for rows in (ROWS, moved))
    for name in ("margin_std", "closeness"):
        assert shifted[name]["deciles"] == plain[name]["deciles"]
    assert shifted["score_std"]["deciles"][0]["uncertainty_mean"] > 50


def test_one_member_has_no_spread_and_says_so() -> None:
    rows = [scored_row([[1, 0]], prompt="a"), scored_row([[0, 1]], prompt="b")]
    figures = pair_figures(rows, [MEAN], 1.0, ["m00"])["all"]
    for name in ("margin_std", "score_std", "relative_std"):
        assert figures["uncertainty"][name]["auroc"] is None
        assert "one member" in figures["uncertainty"][name]["reason"]
    assert figures["uncertainty"]["closeness"]["deciles"]
    assert figures["agreement"]["matrix"] is None
    assert "one member" in figures["agreement"]["reason"]


def test_calibration_uses_the_bundles_tau_and_one_of_other_prompts() -> None:
    rng = np.random.default_rng(0)
    size = np.abs(rng.normal(0, 2, 300))
    margins = np.where(rng.random(300) < 1 / (1 + np.exp(-size)), size, -size)
    rows = [scored_row([[m, 0], [m, 0]], prompt=str(index % 60)) for index, m in enumerate(margins)]
    calibration = pair_figures(rows, [MEAN], 0.1, NAMES)["all"]["calibration"]
    assert calibration["bundle"]["tau"] == 0.1
    assert len(calibration["cross_fitted"]["taus"]) == 5
    assert calibration["cross_fitted"]["nll"] < calibration["bundle"]["nll"]
    assert calibration["cross_fitted"]["ece"] < calibration["bundle"]["ece"]


def test_a_single_prompt_has_no_other_to_fit_on() -> None:
    calibration = pair_figures(ROWS[:2], [MEAN], 1.0, NAMES)["all"]["calibration"]
    assert calibration["cross_fitted"] is None
    assert "single prompt" in calibration["reason"]


def test_pairs_are_stacked_by_member() -> None:
    pairs = Pairs.of(ROWS)
    assert pairs.margins.tolist() == [[2, 1, -1, 1], [4, -2, -1, -1]]
