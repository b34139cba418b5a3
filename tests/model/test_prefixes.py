"""Prefix forests and the planning of passes, against counts made from the sequences themselves."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from quorum_model.passes import plan_batches, plan_passes
from quorum_model.prefixes import MIN_SHARED_TOKENS, PrefixForest, common_prefix, share_prefixes

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=14)
LONG = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 40), st.lists(st.integers(0, 3), min_size=1, max_size=30)), max_size=14
).map(lambda drawn: [[prompt] * length + answer for prompt, length, answer in drawn])


def tokens_of(forest: PrefixForest, sequence: int) -> list[int]:
    return [token for run in forest.path(forest.leaves[sequence]) for token in forest.runs[run].tokens]


@given(one=st.lists(st.integers(0, 1)), other=st.lists(st.integers(0, 1)))
def test_common_prefix_equals_a_loop(one: list[int], other: list[int]) -> None:
    expected = 0
    while expected < min(len(one), len(other)) and one[expected] == other[expected]:
        expected += 1
    assert common_prefix(one, other) == expected


@given(sequences=SEQUENCES, min_shared=st.integers(1, 5))
@example(sequences=[[0] * n for n in range(1, 14)], min_shared=1)  # a chain, as deep as there are sequences
@example(sequences=[[1, 2, 3]] * 3, min_shared=4)  # equal ones
def test_every_sequence_is_read_back_from_its_runs(sequences: list[list[int]], min_shared: int) -> None:
    forest = share_prefixes(sequences, min_shared)
    for index, sequence in enumerate(sequences):
        assert tokens_of(forest, index) == sequence
    parents = {run.parent for run in forest.runs}
    for index, run in enumerate(forest.runs):
        assert run.parent is None or run.parent < index
        assert len(run.tokens) >= (min_shared if index in parents and index not in forest.leaves else 1)


@given(sequences=SEQUENCES)
def test_each_distinct_prefix_is_computed_once(sequences: list[list[int]]) -> None:
    """The oracle is the set of all prefixes: on a causal backbone each needs one token's work."""
    distinct = {tuple(sequence[:end]) for sequence in sequences for end in range(1, len(sequence) + 1)}
    assert share_prefixes(sequences, 1).num_tokens == len(distinct)


@given(sequences=LONG, budget=st.integers(1, 200))
def test_shared_passes_hold_every_sequence_within_the_budget(sequences: list[list[int]], budget: int) -> None:
    passes = plan_passes(sequences, budget, share=True)
    assert sorted(index for each in passes for index in each.indices) == list(range(len(sequences)))
    for each in passes:
        assert isinstance(each.row, PrefixForest)
        assert each.num_tokens == each.row.num_tokens
        assert len(each.indices) == 1 or each.num_tokens <= budget
        for place, index in enumerate(each.indices):
            assert tokens_of(each.row, place) == sequences[index]


def test_candidates_of_one_prompt_meet_in_one_pass() -> None:
    prompts = [[prompt] * 100 for prompt in (7, 3, 5)]
    sequences = [prompts[index % 3] + [10 + index] * 5 for index in range(12)]
    passes = plan_passes(sequences, 200, share=True)
    assert [sorted({sequences[index][0] for index in each.indices}) for each in passes] == [[3], [5], [7]]
    assert [each.num_tokens for each in passes] == [120, 120, 120]


def test_beginnings_shorter_than_the_minimum_are_repeated() -> None:
    sequences = [[1] * (MIN_SHARED_TOKENS - 1) + [2], [1] * (MIN_SHARED_TOKENS - 1) + [3]]
    assert plan_passes(sequences, 1000, share=True)[0].num_tokens == 2 * MIN_SHARED_TOKENS


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 120))
def test_every_sequence_is_in_one_batch_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= budget
