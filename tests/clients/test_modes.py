"""Modes against hand-worked numbers, plain Python and their limits."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorum_client.errors import InvalidRequest
from quorum_client.modes import DEFAULT_BETA, MODES, Mode, aggregate, require_members, resolve_beta, std

scores = st.lists(st.floats(-50, 50), min_size=2, max_size=8)
# Below 2**-24 apart the sample variance of scores near 50 is itself rounding; such spreads are covered by hand below.
ROUNDING = 1e-9


def by_hand(members: list[float], mode: Mode, beta: float | None) -> float:
    """The table of the modes, word for word, with the standard library's statistics."""
    match mode:
        case "mean":
            return statistics.fmean(members)
        case "min":
            return min(members)
        case "median":
            return statistics.median(members)
        case "lcb":
            return statistics.fmean(members) - beta * statistics.stdev(members)
        case "uwo":
            return statistics.fmean(members) - beta * statistics.variance(members)
        case "softmin":
            # Python's exp overflows beyond 709; beta * |r| stays below 150 in these tests.
            return -math.log(statistics.fmean(math.exp(-beta * r) for r in members)) / beta


@pytest.mark.parametrize(
    ("mode", "beta", "expected"),
    [
        # members 1, 2, 6: mean 3, deviations -2, -1, 3, so var = (4 + 1 + 9) / 2 = 7
        ("mean", None, 3.0),
        ("lcb", None, 3 - math.sqrt(7)),
        ("lcb", 2.0, 3 - 2 * math.sqrt(7)),
        ("uwo", None, 3 - 0.5 * 7),
        ("uwo", 1.0, 3 - 7),
        ("softmin", None, -math.log((math.exp(-1) + math.exp(-2) + math.exp(-6)) / 3)),
        ("min", None, 1.0),
        ("median", None, 2.0),
    ],
)
def test_hand_worked(mode: Mode, beta: float | None, expected: float) -> None:
    # 1e-12: double rounding of a handful of operations on numbers of size 10.
    assert aggregate([1.0, 2.0, 6.0], mode, beta) == pytest.approx(expected, abs=1e-12)


@given(members=scores, mode=st.sampled_from(MODES), beta=st.floats(0.05, 3))
def test_matches_the_standard_library(members: list[float], mode: Mode, beta: float) -> None:
    expected = by_hand(members, mode, beta)
    assert float(aggregate(members, mode, beta)) == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING / 0.05)


@given(columns=st.lists(st.tuples(*[st.floats(-5, 5)] * 3), min_size=1, max_size=6), mode=st.sampled_from(MODES))
def test_columns_are_independent(columns: list[tuple[float, ...]], mode: Mode) -> None:
    together = aggregate(np.array(columns).T, mode)
    alone = [aggregate(column, mode) for column in columns]
    assert together.shape == (len(columns),)
    # numpy sums a (3, B) array and a (3,) array in the same order, yet may use another instruction: 1 ulp or so.
    np.testing.assert_allclose(together, alone, rtol=1e-12, atol=1e-12)


@given(members=scores, mode=st.sampled_from(MODES), shift=st.floats(-100, 100))
def test_shifting_all_members_shifts_the_reward(members: list[float], mode: Mode, shift: float) -> None:
    moved = aggregate([r + shift for r in members], mode)
    # The shift rounds each member by 1e-14; uwo squares spreads of up to 100, so 1e-14 * 100 * a few.
    assert float(moved) == pytest.approx(float(aggregate(members, mode)) + shift, rel=1e-9, abs=1e-9)


@given(members=scores, mode=st.sampled_from(MODES))
def test_order_of_members_does_not_matter(members: list[float], mode: Mode) -> None:
    assert float(aggregate(members[::-1], mode)) == pytest.approx(float(aggregate(members, mode)), rel=1e-9, abs=1e-9)


@given(members=scores)
def test_softmin_goes_to_the_mean_for_small_beta(members: list[float]) -> None:
    spread = max(members) - min(members)
    for beta in (0.0, 1e-300, 1e-15, 1e-9):
        # Jensen: mean - softmin lies in [0, beta * spread**2 / 8] (Hoeffding's lemma), plus rounding.
        gap = statistics.fmean(members) - float(aggregate(members, "softmin", beta))
        assert -1e-12 * (1 + abs(sum(members))) <= gap <= beta * spread**2 / 8 + 1e-12 * (1 + abs(sum(members)))


@given(members=scores)
def test_softmin_goes_to_the_min_for_large_beta(members: list[float]) -> None:
    for beta in (1e3, 1e9, 1e300):
        # min <= softmin <= min + log(K) / beta, since mean_k e^(-beta r) >= e^(-beta min) / K.
        above = float(aggregate(members, "softmin", beta)) - min(members)
        assert -1e-12 <= above <= math.log(len(members)) / beta + 1e-12


def test_softmin_is_uwo_with_half_beta_to_second_order() -> None:
    members = [0.3, -0.2, 0.5, 0.1]
    population_variance = statistics.pvariance(members)
    for beta in (1e-2, 1e-3):
        softmin = float(aggregate(members, "softmin", beta))
        # The cumulant expansion has the population variance; the next term is beta**2 * third cumulant / 6.
        third = statistics.fmean((r - statistics.fmean(members)) ** 3 for r in members)
        rest = softmin - (statistics.fmean(members) - beta / 2 * population_variance)
        # Within a tenth of that term: the one after it is smaller by beta.
        assert rest == pytest.approx(beta**2 * third / 6, rel=0.1)


@pytest.mark.parametrize("beta", [1.0, 500.0, 1e6])
def test_softmin_does_not_overflow(beta: float) -> None:
    members = [1e5, -1e5, 3e4]
    assert float(aggregate(members, "softmin", beta)) == pytest.approx(-1e5 + math.log(3) / beta, rel=1e-12)


@pytest.mark.parametrize("beta", [1e-12, 1e-8, 1e-4, 0.9, 1.1])
def test_softmin_has_no_cancellation(beta: float) -> None:
    # Oracle: the series of log mean e^(-x) in exact fractions where beta is small, direct where it is not.
    members = [0.25, 0.5, 1.75]
    if beta >= 0.9:
        expected = by_hand(members, "softmin", beta)
    else:
        exact, b = [Fraction(r) for r in members], Fraction(beta)
        mean = sum(exact) / 3
        moments = [sum((r - mean) ** n for r in exact) / 3 for n in (2, 3, 4)]
        log_mean = b**2 * moments[0] / 2 - b**3 * moments[1] / 6 + b**4 * (moments[2] - 3 * moments[0] ** 2) / 24
        expected = float(mean - log_mean / b)
    # 1e-14 relative: double rounding; the series' next term is below 1e-16 for beta <= 1e-4.
    assert float(aggregate(members, "softmin", beta)) == pytest.approx(expected, rel=1e-14)


def test_std_is_the_sample_one_and_undefined_for_one_member() -> None:
    assert std(np.array([[1.0], [2.0], [6.0]])) == pytest.approx([math.sqrt(7)], abs=1e-12)
    assert std(np.array([[1.0, 2.0]])) is None


@pytest.mark.parametrize("mode", ["lcb", "uwo"])
def test_one_member_has_no_spread_to_subtract(mode: Mode) -> None:
    with pytest.raises(InvalidRequest, match="at least 2 members"):
        aggregate([1.0], mode)
    with pytest.raises(InvalidRequest):
        require_members(mode, 1)


@pytest.mark.parametrize("mode", ["mean", "softmin", "min", "median"])
def test_one_member_is_its_own_reward(mode: Mode) -> None:
    assert float(aggregate([1.5], mode)) == 1.5


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("mode", MODES)
def test_impossible_beta_is_refused(mode: Mode, beta: float) -> None:
    with pytest.raises(InvalidRequest, match="beta"):
        aggregate([1.0, 2.0], mode, beta)


def test_beta_defaults_and_modes_without_one() -> None:
    assert DEFAULT_BETA == {"lcb": 1.0, "uwo": 0.5, "softmin": 1.0}
    assert [resolve_beta(mode, None) for mode in MODES] == [None, 1.0, 0.5, 1.0, None, None]
    assert [resolve_beta(mode, 2.0) for mode in MODES] == [None, 2.0, 2.0, 2.0, None, None]


@pytest.mark.parametrize("members", [[], 1.0, np.empty((0, 3))])
def test_no_members_are_refused(members: object) -> None:
    with pytest.raises(InvalidRequest, match="shape"):
        aggregate(members)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="unknown mode"):
        aggregate([1.0, 2.0], "max")  # type: ignore[arg-type]
