"""RM-Bench's matrix against nine comparisons a row, written out."""

from __future__ import annotations

import numpy as np
import pytest

from quorum_trainer.evaluation.scorings import MEAN, Scoring
from quorum_trainer.evaluation.style_figures import style_figures
from quorum_trainer.evaluation.styles import level_shares, style_shares
from tests.trainer.evaluation.scored_rows import scored_row


def slow_levels(rewards: list[float]) -> dict[str, float]:
    """One row: chosen styles 0 to 2, rejected styles 3 to 5; the index is how rich the style is."""
    cells: dict[str, list[float]] = {"easy": [], "normal": [], "hard": []}
    for chosen in range(3):
        for rejected in range(3):
            difference = rewards[chosen] - rewards[3 + rejected]
            share = 1.0 if difference > 0 else 0.0 if difference < 0 else 0.5
            level = "normal" if chosen == rejected else "hard" if chosen < rejected else "easy"
            cells[level].append(share)
    return {level: sum(shares) / len(shares) for level, shares in cells.items()}


def test_levels_are_those_of_a_loop() -> None:
    rewards = np.random.default_rng(0).integers(0, 4, (50, 6)).astype(float)  # ties too
    levels = level_shares(style_shares(rewards))
    for row in range(50):
        expected = slow_levels(rewards[row].tolist())
        assert {name: levels[name][row] for name in expected} == pytest.approx(expected)
        assert levels["average"][row] == pytest.approx(sum(expected.values()) / 3)


def test_a_model_that_likes_length_is_easy_right_and_hard_wrong() -> None:
    by_style = np.array([[1.0, 2.0, 3.0, 1.0, 2.0, 3.0]])
    levels = level_shares(style_shares(by_style))
    assert {name: values[0] for name, values in levels.items()} == {
        "easy": 1.0, "normal": 0.5, "hard": 0.0, "average": 0.5,
    }  # fmt: skip


def test_domains_count_alike_in_the_average() -> None:
    texts = ("a", "bb", "ccc", "a", "bb", "ccc")
    good = [[3, 3, 3, 0, 0, 0]] * 2
    bad = [[0, 0, 0, 3, 3, 3]] * 2
    rows = [
        scored_row(good, [1, 1, 1, 0, 0, 0], prompt=str(index), responses=texts, tags={"domain": "chat"})
        for index in range(3)
    ]
    rows.append(scored_row(bad, [1, 1, 1, 0, 0, 0], prompt="z", responses=texts, tags={"domain": "code"}))
    figures = style_figures(rows, [MEAN, Scoring("min")], ["m00", "m01"])
    assert figures["num_prompts"] == {"chat": 3, "code": 1}
    mean = figures["scorings"]["mean"]
    assert mean["chat"]["hard"]["value"] == 1.0
    assert mean["code"]["hard"]["value"] == 0.0
    assert mean["average"]["hard"]["value"] == 0.5
    assert mean["average"]["matrix"] == [[0.5] * 3] * 3
    assert set(figures["members"]) == {"m00", "m01"}
    longer = figures["baselines"]["longer"]["average"]
    assert (longer["easy"]["value"], longer["normal"]["value"], longer["hard"]["value"]) == (1.0, 0.5, 0.0)
    assert figures["baselines"]["random"]["average"]["average"]["value"] == 0.5


def test_the_interval_of_the_average_is_that_of_independent_domains() -> None:
    scores, texts = np.random.default_rng(1).normal(size=(100, 1, 6)), ("a",) * 6
    # The same scores in both domains: draws that they shared would move both figures together.
    rows = [
        scored_row(own, [1, 1, 1, 0, 0, 0], prompt=f"{domain} {index}", responses=texts, tags={"domain": domain})
        for domain in ("chat", "code")
        for index, own in enumerate(scores)
    ]
    mean = style_figures(rows, [MEAN], ["m00"])["scorings"]["mean"]
    widths = [mean[domain]["normal"]["high"] - mean[domain]["normal"]["low"] for domain in ("chat", "code")]
    average = mean["average"]["normal"]["high"] - mean["average"]["normal"]["low"]
    # Half the root of the sum of squares; draws shared between domains would give half the sum, 41 % more. The ends of
    # percentile intervals of 1,000 resamples are good to about 5 %.
    assert average == pytest.approx(np.hypot(*widths) / 2, rel=0.15)
