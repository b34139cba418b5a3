"""The split: every prompt on one side, nearly equal folds, and the same ones as ever."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorum_trainer.data import PreferencePair, assign_folds, split_held_out, take


def pair(prompt: str, number: int = 0) -> PreferencePair:
    return PreferencePair(prompt=prompt, chosen=f"yes {number}", rejected=f"no {number}")


# Prompts that differ in case and spacing alone, and some that do not.
PROMPTS = st.lists(st.text("aAb \u00c4", min_size=1, max_size=3), min_size=1, max_size=40)


def test_a_string_prompt_is_its_only_user_turn() -> None:
    turns = PreferencePair.model_validate(
        {"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}
    )
    assert turns.prompt_key() == pair("a").prompt_key() != pair("b").prompt_key()
    assert turns.loose_prompt_key() == pair(" A\n").loose_prompt_key()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is  it?\n", "what IS it?", True),
        ("\ufb01sh \u2460", "FISH 1", True),  # a ligature, a circled digit
        ("stra\u00dfe", "STRASSE", True),
        ("e\u0301t\u00e9", "\u00c9te\u0301", True),  # composed and not
        ("a\u00a0b\u3000c", "a b c", True),
        ("\u0390", "\u03aa\u0301", True),  # a Greek letter whose capital is two characters
        ("what is it", "what is it?", False),
        ("ab", "a b", False),
        ("caf\u00e9", "cafe", False),
    ],
)
def test_spelling_alone(one: str, other: str, same: bool) -> None:
    assert (pair(one).loose_prompt_key() == pair(other).loose_prompt_key()) is same
    assert pair(one).prompt_key() != pair(other).prompt_key()


def test_who_said_it_is_part_of_a_prompt() -> None:
    keys = set()
    for role in ("user", "system"):
        row = {
            "prompt": [{"role": role, "content": "a"}, {"role": "user", "content": "b"}],
            "chosen": "c",
            "rejected": "d",
        }
        keys.add(PreferencePair.model_validate(row).loose_prompt_key())
    assert len({*keys, pair("a b").loose_prompt_key()}) == 3


@given(prompts=PROMPTS, share=st.floats(0, 0.9), seed=st.integers(0, 5))
def test_no_prompt_is_on_both_sides(prompts: list[str], share: float, seed: int) -> None:
    pairs = [pair(prompt, number) for number, prompt in enumerate(prompts)]
    train, held_out = split_held_out(pairs, share, seed)
    assert sorted(p.chosen for p in train + held_out) == sorted(p.chosen for p in pairs)
    assert [p for p in pairs if p in train] == train
    assert not {p.loose_prompt_key() for p in train} & {p.loose_prompt_key() for p in held_out}
    assert (train, held_out) == split_held_out(pairs, share, seed)


@given(prompts=PROMPTS, num_folds=st.integers(1, 6), seed=st.integers(0, 5))
def test_folds_are_nearly_equal_in_prompts_and_do_not_follow_the_order(
    prompts: list[str], num_folds: int, seed: int
) -> None:
    pairs = [pair(prompt) for prompt in prompts]
    folds = assign_folds(pairs, num_folds, seed)
    of_prompt = {(p.loose_prompt_key(), fold) for p, fold in zip(pairs, folds, strict=True)}
    sizes = [sum(1 for _, own in of_prompt if own == fold) for fold in range(num_folds)]
    assert sum(sizes) == len({p.loose_prompt_key() for p in pairs})
    assert max(sizes) - min(sizes) <= 1
    assert assign_folds(pairs[::-1], num_folds, seed) == folds[::-1]


@given(prompts=st.sets(st.text(min_size=1, max_size=3), min_size=1, max_size=40), seed=st.integers(0, 5))
def test_without_near_duplicates_the_folds_are_those_of_the_prompts_as_written(prompts: set[str], seed: int) -> None:
    pairs = list({p.loose_prompt_key(): p for p in map(pair, sorted(prompts))}.values())
    exact = sorted(p.prompt_key() for p in pairs)  # how it was done before prompts were compared loosely
    random.Random(seed).shuffle(exact)
    expected = {prompt: index * 5 // len(exact) for index, prompt in enumerate(exact)}
    assert assign_folds(pairs, 5, seed) == [expected[p.prompt_key()] for p in pairs]


def test_folds_follow_the_seed() -> None:
    pairs = [pair(f"p{number}") for number in range(100)]
    folds = assign_folds(pairs, 5, seed=0)
    assert [folds.count(fold) for fold in range(5)] == [20] * 5
    assert folds != assign_folds(pairs, 5, seed=1)
    assert assign_folds([pair("p3")] * 4, 5, seed=0) == [0] * 4  # one prompt, one fold


def test_take_draws_without_repeats_in_order() -> None:
    pairs = [pair(f"p{number}", number) for number in range(50)]
    taken = take(pairs, 10, seed=3)
    places = [pairs.index(p) for p in taken]
    assert len(set(places)) == 10
    assert places == sorted(places)
    assert take(pairs, None, seed=3) is pairs
