"""Prefix forests and the planning of passes, against counts made from the sequences themselves."""

from __future__ import annotations

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from quorum_model.passes import continue_from, plan_batches, plan_passes
from quorum_model.prefix_store import BLOCK_TOKENS, Block, PrefixStore, digests_of
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


@given(sequences=LONG, budget=st.integers(1, 200), stretch=st.booleans())
def test_shared_passes_hold_every_sequence_within_the_budget(
    sequences: list[list[int]], budget: int, stretch: bool
) -> None:
    passes = plan_passes(sequences, budget, share=True, stretch=stretch)
    assert sorted(index for each in passes for index in each) == list(range(len(sequences)))
    for each in passes:
        forest = share_prefixes([sequences[index] for index in each])
        columns = list(zip(*(sequences[index] for index in each), strict=False))
        common = next((place for place, own in enumerate(columns) if len(set(own)) > 1), len(columns))
        room = max(budget, 6 * common) if stretch and common >= MIN_SHARED_TOKENS else budget
        assert len(each) == 1 or forest.num_tokens <= room


def test_a_prompt_beyond_the_budget_is_not_computed_again_for_each_candidate() -> None:
    """512 + 16 x 128 at a budget of 256: one pass, and not sixteen of a candidate each."""
    sequences = [[1] * 512 + [10 + number] + [2] * 127 for number in range(16)]
    computed = [
        share_prefixes([sequences[i] for i in each]).num_tokens for each in plan_passes(sequences, 256, share=True)
    ]
    assert sum(computed) <= 512 + 16 * 128 + 512  # the plan counts 15 tokens a candidate too much: two passes
    assert max(computed) <= 5 * 512
    assert plan_passes(sequences, 256, share=True, stretch=False) == [[number] for number in range(16)]


def test_candidates_of_one_prompt_meet_in_one_pass() -> None:
    prompts = [[prompt] * 100 for prompt in (7, 3, 5)]
    sequences = [prompts[index % 3] + [10 + index] * 5 for index in range(12)]
    passes = plan_passes(sequences, 200, share=True)
    assert [sorted({sequences[index][0] for index in each}) for each in passes] == [[3], [5], [7]]
    assert [share_prefixes([sequences[index] for index in each]).num_tokens for each in passes] == [120, 120, 120]


def test_beginnings_shorter_than_the_minimum_are_repeated() -> None:
    sequences = [[1] * (MIN_SHARED_TOKENS - 1) + [2], [1] * (MIN_SHARED_TOKENS - 1) + [3]]
    assert share_prefixes(sequences).num_tokens == 2 * MIN_SHARED_TOKENS
    assert plan_passes(sequences, 2 * MIN_SHARED_TOKENS - 1, share=True) == [[0], [1]]


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 120))
def test_every_sequence_is_in_one_batch_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= budget


def blocks_for(sequence: list[int]) -> list[tuple[bytes, Block]]:
    """Blocks of 1,000 bytes."""
    tensor = torch.zeros(1, 1, 125, 1)
    return [(digest, Block([tensor], [tensor])) for digest in digests_of(sequence)]


def test_a_block_is_named_by_all_tokens_up_to_its_end() -> None:
    one = list(range(4 * BLOCK_TOKENS))
    assert len(digests_of(one)) == 3  # the last block holds the last token, which is pooled
    assert len(digests_of([*one, 0])) == 4
    other = [*one[:BLOCK_TOKENS], 999, *one[BLOCK_TOKENS + 1 :]]
    same = [a == b for a, b in zip(digests_of(one), digests_of(other), strict=True)]
    assert same == [True, False, False]


def test_the_store_gives_back_whole_beginnings() -> None:
    store = PrefixStore(10_000)
    sequence = list(range(300))
    blocks = blocks_for(sequence)
    store.put(blocks)
    assert store.find(digests_of(sequence)) == tuple(block for _, block in blocks)
    assert store.find(digests_of([*sequence[:130], 7, 7])) == tuple(block for _, block in blocks[:2])
    assert store.find(digests_of(sequence[1:])) == ()


def test_the_store_drops_the_least_recently_used_from_the_end_of_a_beginning() -> None:
    store = PrefixStore(5_000)
    first, second = list(range(200)), list(range(1000, 1200))  # three blocks each
    store.put(blocks_for(first))
    store.put(blocks_for(second))
    assert store.num_bytes == 5_000
    assert len(store.find(digests_of(first))) == 2
    assert len(store.find(digests_of(second))) == 3
    store.find(digests_of(first))
    store.put(blocks_for(list(range(2000, 2130))))  # two more
    assert len(store.find(digests_of(first))) == 2
    assert len(store.find(digests_of(second))) == 1


def test_a_store_that_holds_nothing_loses_nothing() -> None:
    store = PrefixStore(500)
    store.put(blocks_for(list(range(200))))
    assert store.num_bytes == 0
    assert store.find(digests_of(list(range(200)))) == ()


@given(sequences=LONG.filter(bool))
def test_what_is_stored_is_left_out_and_the_rest_is_there(sequences: list[list[int]]) -> None:
    store = PrefixStore(10**9)
    store.put(blocks_for([0] * 70))
    store.put(blocks_for(sequences[0] * 3))
    whole = [sequence * 3 for sequence in sequences]
    forest, new = continue_from(store, whole)
    for index, sequence in enumerate(whole):
        path = forest.path(forest.leaves[index])
        stored = forest.runs[path[0]].stored
        assert stored == store.find(digests_of(sequence))
        assert tokens_of(forest, index) == sequence[BLOCK_TOKENS * len(stored) :]
    every = {digest: sequence for sequence in whole for digest in digests_of(sequence)}
    assert {digest for digest, _ in new} == {digest for digest in every if digest not in store}
    for index, first, block in forest.wanted:
        known = len(forest.runs[forest.path(forest.leaves[index])[0]].stored)
        digest = next(digest for digest, one in new if one is block)
        assert digests_of(whole[index])[known + first // BLOCK_TOKENS] == digest
