"""Preference pairs: reading, splitting by prompt, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorum_trainer.data import DataError, PreferencePair, assign_folds, hash_file, read_pairs, split_held_out, take

LINE = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": None, "source": "other fields are ignored"}


def pair(prompt: str, number: int = 0) -> PreferencePair:
    return PreferencePair(prompt=prompt, chosen=f"yes {number}", rejected=f"no {number}")


def test_plain_and_gzip_read_the_same(tmp_path: Path) -> None:
    text = "".join(json.dumps({**LINE, "prompt": f"p{n}"}) + "\n" for n in range(3)) + "\n"
    (tmp_path / "a.jsonl").write_text(text)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
        stream.write(text)
    plain = read_pairs(tmp_path / "a.jsonl")
    assert [p.prompt for p in plain] == ["p0", "p1", "p2"]
    assert read_pairs(tmp_path / "a.jsonl.gz") == plain


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no pairs"), (b"\xff\xfe\n", "cannot be read"), (None, "cannot be read")],
)
def test_files_that_hold_nothing(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_pairs(path)


def test_a_broken_gzip_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(LINE).encode() * 100)
    for broken in (whole[: len(whole) // 2], whole[:12] + b"\x00" * 20 + whole[32:]):
        (tmp_path / "a.jsonl.gz").write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
            read_pairs(tmp_path / "a.jsonl.gz")


def test_blank_sides_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(LINE) + "\n" + json.dumps({**LINE, "rejected": " \n"}) + "\n")
    with pytest.raises(DataError, match="line 2: rejected: is empty or blank"):
        read_pairs(tmp_path / "a.jsonl")


def test_a_string_prompt_is_its_only_user_turn() -> None:
    turns = PreferencePair.model_validate(
        {"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}
    )
    assert turns.prompt_key() == pair("a").prompt_key() != pair("b").prompt_key()


@given(prompts=st.lists(st.integers(0, 20), min_size=1, max_size=60), share=st.floats(0, 0.9), seed=st.integers(0, 5))
def test_no_prompt_is_on_both_sides(prompts: list[int], share: float, seed: int) -> None:
    pairs = [pair(f"p{prompt}", number) for number, prompt in enumerate(prompts)]
    train, held_out = split_held_out(pairs, share, seed)
    assert sorted(p.chosen for p in train + held_out) == sorted(p.chosen for p in pairs)
    assert not {p.prompt_key() for p in train} & {p.prompt_key() for p in held_out}
    assert (train, held_out) == split_held_out(pairs, share, seed)


def test_folds_are_of_nearly_equal_size_and_follow_the_seed() -> None:
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


def test_hash_is_of_the_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
