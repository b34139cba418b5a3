"""plan_pass against a plain walk over all waiting sequences."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quorum_server.packing import plan_pass

jobs = st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(1, 20), min_size=1, max_size=6)), max_size=8)


def walk(waiting: list[tuple[str, list[int]]], budget: int) -> list[int]:
    """The oracle: take single sequences in order until one does not fit or has another version."""
    taken: list[int] = []
    flat = [(index, version, length) for index, (version, lengths) in enumerate(waiting) for length in lengths]
    for place, (index, version, _) in enumerate(flat):
        total = sum(length for _, _, length in flat[: place + 1])
        if version != flat[0][1] or (place > 0 and total > budget):
            break
        taken.append(index)
    return [taken.count(index) for index in sorted(set(taken))]


@given(jobs, st.integers(1, 40))
def test_the_plan_is_the_longest_prefix_in_order_of_arrival(waiting: list[tuple[str, list[int]]], budget: int) -> None:
    assert plan_pass(waiting, budget) == walk(waiting, budget)


def test_a_sequence_beyond_the_budget_gets_a_pass_of_its_own() -> None:
    assert plan_pass([("a", [50, 1])], 10) == [1]
    assert plan_pass([("a", [1]), ("a", [50])], 10) == [1]


def test_a_job_is_split_rather_than_overtaken() -> None:
    assert plan_pass([("a", [4, 4, 4]), ("a", [1])], 10) == [2]


def test_nothing_waiting_is_an_empty_plan() -> None:
    assert plan_pass([], 10) == []
