"""Percentiles and orders, against a loop over texts and pairs, and by hand at the bounds."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest

from quorum_model.benchmark.parity_figures import orders_kept, parity_figures

NAMES = ["m00", "m01", "m02"]


def random_scores(noise: float, texts: int = 201) -> tuple[Any, Any, Any]:
    draw = np.random.default_rng(0)
    exact = draw.normal(size=(3, texts))
    pairs = draw.integers(0, texts, size=(300, 2))
    return exact, exact + noise * draw.normal(size=exact.shape), pairs


def test_against_loops() -> None:
    exact, other, pairs = random_scores(0.3)
    found = parity_figures(exact, other, pairs, NAMES)

    def expected(before: list[float], after: list[float]) -> dict[str, float]:
        differences = sorted(abs(a - b) for a, b in zip(after, before, strict=True))
        # 201 sorted values: the 50th and 99th percentile are values 100 and 198, counted from 0.
        return {"p50": differences[100], "p99": differences[198], "max": differences[200]}

    for index, name in enumerate(NAMES):
        assert found["members"][name] == pytest.approx(expected(list(exact[index]), list(other[index])))
    for figure, of in (("mean", statistics.fmean), ("std", statistics.stdev)):
        before, after = ([of(column) for column in scores.T] for scores in (exact, other))
        assert found[figure] == pytest.approx(expected(before, after))
    clear, kept = 0, 0
    for one, two in pairs:
        before = statistics.fmean(exact[:, one]) - statistics.fmean(exact[:, two])
        after = statistics.fmean(other[:, one]) - statistics.fmean(other[:, two])
        clear += abs(before) > 0.1
        kept += abs(before) > 0.1 and before * after > 0
    assert found["order"] == {"pairs": 300, "clear_pairs": clear, "kept": pytest.approx(kept / clear)}
    assert kept < clear
    assert found["passes"] is False


def test_small_differences_pass() -> None:
    found = parity_figures(*random_scores(0.005), NAMES)
    assert found["order"]["kept"] == 1
    assert found["passes"] is True


def test_one_member_has_no_std() -> None:
    exact, other, pairs = random_scores(0.005)
    assert parity_figures(exact[:1], other[:1], pairs, NAMES[:1])["std"] is None


@pytest.mark.parametrize("member", [0, 2])
def test_one_bad_member_fails(member: int) -> None:
    exact, other, pairs = random_scores(0.0)
    other[member, ::20] += 0.06  # one text in twenty: the median is 0
    assert parity_figures(exact, other, pairs[:0], NAMES)["passes"] is False


def test_a_std_that_is_off_fails_where_every_member_and_the_mean_pass() -> None:
    direction = np.tile([[-1.0], [1.0], [1.0]], 10)  # its std is 1.15
    found = parity_figures(0.01 * direction, 0.059 * direction, np.zeros((0, 2), np.int64), NAMES)
    assert max(own["max"] for own in [*found["members"].values(), found["mean"]]) == pytest.approx(0.049)
    assert found["std"]["p99"] == pytest.approx(0.049 * np.sqrt(4 / 3))
    assert found["passes"] is False
    assert parity_figures(0.01 * direction, 0.05 * direction, np.zeros((0, 2), np.int64), NAMES)["passes"] is True


def test_orders_by_hand() -> None:
    exact = np.array([0.0, 0.2, 0.05, 1.0])
    pairs = np.array([[0, 1], [0, 2], [3, 0]])
    same = orders_kept(exact, exact, pairs)
    assert same == {"pairs": 3, "clear_pairs": 2, "kept": 1.0}  # a margin of 0.05 is not clear
    assert orders_kept(exact, np.array([0.0, -0.2, -1.0, 1.0]), pairs)["kept"] == 0.5
    assert orders_kept(exact, np.array([0.0, 0.0, 0.0, 1.0]), pairs)["kept"] == 0.5  # a tie is no order
    assert orders_kept(exact, exact, pairs[1:2])["kept"] is None


def test_one_lost_order_fails() -> None:
    exact, other, _ = random_scores(0.0)
    exact[:, :2] = [[0.06, -0.06]] * 3
    other[:, :2] = [[0.02, 0.03]] * 3  # two texts of 201 are beyond the 99th percentile
    figures = parity_figures(exact, other, np.array([[0, 1]]), NAMES)
    assert max(own["p99"] for own in figures["members"].values()) <= 0.05
    assert figures["passes"] is False
