"""The playground's arithmetic, without a browser: what is split, ranked, moved and shortened."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quorum_client.errors import InvalidRequest
from quorum_client.types import ScoreItem, ScoreResult
from quorum_server.playground.tables import (
    most_uncertain,
    rank,
    ranking_rows,
    run_rows,
    shorten,
    split_candidates,
)
from quorum_server.tallies import VersionTally
from quorum_server.uncertainty import CalibratedTexts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n---\nb", ["a", "b"]),
        ("two\n\nparagraphs\n  ---  \nb\n---\n \n---", ["two\n\nparagraphs", "b"]),
        ("--- is no line of its own", ["--- is no line of its own"]),
        ("", []),
    ],
)
def test_candidates_are_split_at_lines_of_dashes(text: str, expected: list[str]) -> None:
    assert split_candidates(text) == expected


def test_a_ranking_moves_with_beta() -> None:
    """Means 2 and 1, stds 3 and 0 (by hand: sqrt(((5-2)^2 + (2-2)^2 + (-1-2)^2) / 2) = 3)."""
    members = [[5.0, 2.0, -1.0], [1.0, 1.0, 1.0]]
    before, after = rank(members, "lcb", 0.0), rank(members, "lcb", 1.0)
    assert before.order == [0, 1]
    assert after.order == [1, 0]
    assert after.rewards.tolist() == [-1.0, 1.0]
    assert ranking_rows(after, ["bold", "sure"]) == [
        [1, "2 (up 1)", 1.0, 1.0, 0.0, "sure"],
        [2, "1 (down 1)", -1.0, 2.0, 3.0, "bold"],
    ]


def test_ties_go_to_the_earlier_and_one_member_has_no_std() -> None:
    ranking = rank([[1.0], [1.0], [2.0]], "mean", None)
    assert ranking.order == [2, 0, 1]
    assert np.isnan(ranking.std).all()
    with pytest.raises(InvalidRequest, match="at least 2 members"):
        rank([[1.0], [2.0]], "lcb", 1.0)


def test_what_members_differ_on_comes_first_and_what_has_no_score_is_left_out() -> None:
    items = [ScoreItem(prompt="p", response=text) for text in "abc"]
    results = [
        ScoreResult(score=1.0, mean=1.0, std=0.1, members=[1.0, 1.0]),
        ScoreResult(),
        ScoreResult(score=0.0, mean=0.0, std=0.7, members=[0.5, -0.5]),
    ]
    assert most_uncertain([1, 4, 9], items, results) == [[9, 0.7, 0.0, "p", "c"], [1, 0.1, 1.0, "p", "a"]]


def test_runs_are_summed_up() -> None:
    tally = VersionTally(None)
    texts = CalibratedTexts(np.array([[1.0, -3.0], [2.0, -1.0]]), np.array([0, 1]))
    tally.add("", texts, np.empty(0))
    ((*names, items, mean, std, beyond, drift),) = run_rows({("one", "v"): tally})
    assert (names, items, beyond, drift) == (["one", "v", "-"], 2, "-", "-")
    assert mean == pytest.approx((1.5 - 2.0) / 2, abs=1e-3)
    assert std == pytest.approx((math.sqrt(0.5) + math.sqrt(2)) / 2, abs=1e-3)


def test_long_text_is_cut_and_put_on_a_line() -> None:
    assert shorten("a\n  b") == "a b"
    assert len(shorten("x" * 1000)) == 160
