"""Units and plans against their definitions, and against a plain walk over everything that waits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quorum_model.prefixes import MIN_SHARED_TOKENS, share_prefixes
from quorum_server.engine.messages import TokenIds
from quorum_server.packing import Order, Waiting, cut_units, plan_pass

jobs = st.lists(
    st.tuples(st.sampled_from("ab"), st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 30)),
    max_size=8,
)
orders: st.SearchStrategy[Order] = st.sampled_from(["arrival", "least_served"])


def waiting(jobs: Sequence[tuple[str, list[int], int]], budget: int) -> list[Waiting]:
    return [Waiting(version, budget, iter(sizes), served) for version, sizes, served in jobs]


def walk(jobs: Sequence[tuple[str, list[int], int]], budget: int, order: Order) -> list[int]:
    """The oracle: again and again the first request by the order, of those that can still give a unit."""
    counts = [0] * len(jobs)
    blocked: set[int] = set()
    version, used = None, 0
    while used < budget:
        open_ones = [
            (sum(jobs[i][1][: counts[i]]) + jobs[i][2] if order == "least_served" else 0, i)
            for i in range(len(jobs))
            if i not in blocked and counts[i] < len(jobs[i][1]) and version in (None, jobs[i][0])
        ]
        if not open_ones:
            break
        _, i = min(open_ones)
        size = jobs[i][1][counts[i]]
        if used and used + size > budget:
            blocked.add(i)
            continue
        version, used = jobs[i][0], used + size
        counts[i] += 1
    return counts


@given(jobs, st.integers(1, 40), orders)
def test_the_plan_is_the_walk(jobs: list[tuple[str, list[int], int]], budget: int, order: Order) -> None:
    assert plan_pass(waiting(jobs, budget), order) == walk(jobs, budget, order)


@given(jobs, st.integers(1, 40), orders)
def test_a_plan_has_one_version_keeps_the_budget_and_moves_the_first(
    jobs: list[tuple[str, list[int], int]], budget: int, order: Order
) -> None:
    counts = plan_pass(waiting(jobs, budget), order)
    taken = [(version, sizes[:count]) for (version, sizes, _), count in zip(jobs, counts, strict=True) if count]
    assert len({version for version, _ in taken}) <= 1
    sizes = [size for _, some in taken for size in some]
    assert sum(sizes) <= budget or len(sizes) == 1
    if jobs:
        first = 0 if order == "arrival" else min(range(len(jobs)), key=lambda i: (jobs[i][2], i))
        assert counts[first] >= 1


def test_a_pass_has_the_budget_of_its_own_version() -> None:
    both = [Waiting("a", 4, iter([2] * 9), 0), Waiting("b", 100, iter([2] * 9), 0)]
    assert plan_pass(both, "arrival") == [2, 0]
    both = [Waiting("b", 100, iter([2] * 9), 0), Waiting("a", 4, iter([2] * 9), 0)]
    assert plan_pass(both, "arrival") == [9, 0]


def test_a_sequence_beyond_the_budget_gets_a_pass_of_its_own() -> None:
    assert plan_pass(waiting([("a", [50, 1], 0)], 10), "arrival") == [1]
    assert plan_pass(waiting([("a", [1], 0), ("a", [50], 0)], 10), "arrival") == [1, 0]


def test_what_does_not_fit_is_overtaken_by_what_does_but_not_by_its_own_rest() -> None:
    assert plan_pass(waiting([("a", [6, 6, 1], 0), ("a", [4], 0)], 10), "arrival") == [1, 1]


def test_by_least_served_a_small_request_does_not_wait_for_a_large_one() -> None:
    large = ("a", [5] * 1000, 50)
    assert plan_pass(waiting([large, ("a", [3], 0)], 10), "arrival") == [2, 0]
    assert plan_pass(waiting([large, ("a", [3], 0)], 10), "least_served") == [1, 1]


def test_a_pass_full_of_misfits_is_sent_as_it_is() -> None:
    """Planning a pass does not cost more the more requests wait."""
    many = [("a", [8], 0)] * 100 + [("a", [2], 0)]
    assert plan_pass(waiting(many, 10), "arrival") == [1] + [0] * 100


def ids(*sequences: Sequence[int]) -> list[TokenIds]:
    return [np.array(sequence, dtype=np.int32) for sequence in sequences]


def test_candidates_of_one_prompt_are_one_unit() -> None:
    first, second = list(range(10, 20)), list(range(40, 60))
    sequences = ids([*first, 1], [*second, 7, 8], [*first, 300], [*second, 9], [70_000, 2])
    units = cut_units(sequences, 1000)
    assert [unit.indices for unit in units] == [(0, 2), (3, 1) if units[1].indices[0] == 3 else (1, 3), (4,)]
    assert [unit.num_tokens for unit in units] == [22, 43, 2]


def test_a_group_beyond_the_budget_is_cut() -> None:
    sequences = ids(*([1, 2, 3, 4, number] for number in range(10)))
    units = cut_units(sequences, 20)
    assert [unit.num_tokens for unit in units] == [20, 20, 10]


def test_a_shared_prefix_counts_once_where_the_engine_computes_it_once() -> None:
    prompt = list(range(100))
    some = ids(*([*prompt, 200 + number, *range(9)] for number in range(10)))
    assert [unit.num_tokens for unit in cut_units(some, 400)] == [330, 330, 330, 110]
    (together,) = cut_units(some, 400, shares_prefixes=True)
    # At most: a run shorter than the minimum may be repeated.
    computed = share_prefixes([sequence.tolist() for sequence in some]).num_tokens
    assert computed == 100 + 10 * 10
    assert computed <= together.num_tokens <= computed + 9 * (MIN_SHARED_TOKENS - 1)


long_sequences = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 60), st.lists(st.integers(3, 5), min_size=1, max_size=20)),
    min_size=1, max_size=12,
).map(lambda drawn: [[prompt] * length + answer for prompt, length, answer in drawn])  # fmt: skip


@given(long_sequences, st.integers(1, 200))
def test_a_unit_counts_at_least_what_is_computed_for_it(some: list[list[int]], budget: int) -> None:
    for unit in cut_units(ids(*some), budget, shares_prefixes=True):
        computed = share_prefixes([some[index] for index in unit.indices]).num_tokens
        assert computed <= unit.num_tokens
        columns = list(zip(*(some[index] for index in unit.indices), strict=False))
        common = next((place for place, own in enumerate(columns) if len(set(own)) > 1), len(columns))
        room = max(budget, 6 * common) if common >= MIN_SHARED_TOKENS else budget
        assert unit.num_tokens <= room or len(unit.indices) == 1


def test_candidates_of_a_prompt_beyond_the_budget_are_cut_into_few_units() -> None:
    some = ids(*([*range(512), 600 + number, *range(127)] for number in range(16)))
    assert [len(unit.indices) for unit in cut_units(some, 256, shares_prefixes=True)] == [16]
    assert len(cut_units(some, 256)) == 16


sequences = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=12)


@given(sequences, st.integers(1, 30))
def test_units_hold_each_sequence_once_within_the_budget(some: list[list[int]], budget: int) -> None:
    units = cut_units(ids(*some), budget)
    assert sorted(index for unit in units for index in unit.indices) == list(range(len(some)))
    for unit in units:
        assert unit.num_tokens == sum(len(some[index]) for index in unit.indices)
        assert unit.num_tokens <= budget or len(unit.indices) == 1
        for a, b in zip(unit.indices, unit.indices[1:], strict=False):
            half = (min(len(some[a]), len(some[b])) + 1) // 2
            assert some[a][:half] == some[b][:half]
    firsts = [min(unit.indices) for unit in units]
    assert firsts == sorted(firsts)
