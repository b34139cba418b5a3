"""The audit: against a comparison of every pair with every other, and its words and numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator

from hypothesis import given
from hypothesis import strategies as st

from quorum_trainer.data import PreferencePair, SourceSplit, audit_splits


def pair(prompt: str, chosen: str, rejected: str, line: int | None = None, *, tie: bool = False) -> PreferencePair:
    return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, line=line, tie=tie)


# Few values, so that they meet often; few held out, so that most of the others remain.
PAIRS = st.builds(
    pair, st.sampled_from(["p", "P ", "q", "r"]), st.sampled_from(["a", "b"]), st.sampled_from(["a", "b"]),
    st.integers(1, 99), tie=st.booleans(),
)  # fmt: skip
SPLITS = st.lists(st.tuples(st.lists(PAIRS, max_size=8), st.lists(PAIRS, max_size=1)), min_size=1, max_size=3).map(
    lambda sides: [SourceSplit(f"s{number}", *both) for number, both in enumerate(sides)]
)


def is_duplicate(one: PreferencePair, other: PreferencePair) -> bool:
    if one.prompt != other.prompt or one.tie != other.tie:
        return False
    same = (one.chosen, one.rejected) == (other.chosen, other.rejected)
    return same or (one.tie and (one.chosen, one.rejected) == (other.rejected, other.chosen))


def is_contradiction(one: PreferencePair, other: PreferencePair) -> bool:
    swapped = (one.chosen, one.rejected) == (other.rejected, other.chosen)
    return one.prompt == other.prompt and swapped and one.chosen != one.rejected and not one.tie and not other.tie


def spelling(prompt: object) -> str:
    return str(prompt).strip().lower()  # enough for the prompts above


@given(splits=SPLITS)
def test_it_finds_what_comparing_all_with_all_finds(splits: list[SourceSplit]) -> None:
    kept, audit = audit_splits(splits)
    held_out = [p for split in splits for p in split.held_out]
    train = [(split.name, p) for split in splits for p in split.train]
    leaking = [any(spelling(p.prompt) == spelling(h.prompt) for h in held_out) for _, p in train]
    remaining = [item for item, leaks in zip(train, leaking, strict=True) if not leaks]

    assert [(split.name, p) for split in kept for p in split.train] == remaining
    assert [split.held_out for split in kept] == [split.held_out for split in splits]
    assert audit.leaks.by_source == Counter(name for (name, _), leaks in zip(train, leaking, strict=True) if leaks)
    assert audit.leaked_held_out.by_source == Counter(
        split.name
        for split in splits
        for h in split.held_out
        if any(spelling(p.prompt) == spelling(h.prompt) for _, p in train)
    )

    def earlier(compare: Callable[[PreferencePair, PreferencePair], bool]) -> Iterator[str]:
        for number, (name, p) in enumerate(remaining):
            if any(compare(p, before) for _, before in remaining[:number]):
                yield name

    assert audit.duplicates.by_source == Counter(earlier(is_duplicate))
    assert audit.contradictions.by_source == Counter(earlier(is_contradiction))
    assert audit.identical.by_source == Counter(name for name, p in remaining if p.chosen == p.rejected and not p.tie)


def test_what_is_no_duplicate_and_no_contradiction() -> None:
    train = [pair("p", "a", "a", 1), pair("p", "a", "a", 2), pair("q", "a", "b", 3), pair("Q", "a", "b", 4)]
    train += [pair("q", "b", "a", 5, tie=True), pair("Q ", "b", "a", 6)]
    audit = audit_splits([SourceSplit("one", train, [])])[1]
    assert audit.identical.lines == {"one": (1, 2)}
    assert audit.duplicates.lines == {"one": (2,)}  # a response and itself told twice, and no other
    assert audit.contradictions.lines == {}  # neither itself swapped, nor a tie, nor a prompt spelt otherwise


def planted() -> list[SourceSplit]:
    return [
        SourceSplit(
            "one",
            [
                pair("What is it?", "SECRET", "b", 1),
                pair("q", "a", "b", 2),
                pair("q", "a", "b", 3),
                *(pair("r", "a", "b", line) for line in range(4, 9)),
                pair("s", "a", "a", 9),
            ],
            [pair("h", "a", "b", 10)],
        ),
        SourceSplit("two", [pair("q", "b", "a", 1), pair("t", "a", "b", 2)], [pair("what  is IT?", "a", "b", 3)]),
    ]


def test_a_leak_between_sources_is_dropped_and_told() -> None:
    kept, audit = audit_splits(planted())
    assert [p.line for p in kept[0].train] == list(range(2, 10))
    assert audit.summary_lines() == [
        "data: 1 training pairs dropped, because their prompts are held out: one 1 (line 1)",
        "data: 5 training pairs told again: one 5 (lines 3, 5, 6, …)",
        "data: 1 training pairs that contradict an earlier one: two 1 (line 1)",
        "data: 1 training pairs of a response and itself: one 1 (line 9)",
    ]
    assert audit.leaked_held_out.lines == {"two": (3,)}


def test_the_manifest_gets_numbers_alone() -> None:
    metrics = audit_splits(planted())[1].as_metrics()
    assert json.loads(json.dumps(metrics, allow_nan=False)) == {
        "train": {"total": 10, "by_source": {"one": 8, "two": 2}},
        "held_out": {"total": 2, "by_source": {"one": 1, "two": 1}},
        "duplicates": {"total": 5, "by_source": {"one": 5}},
        "contradictions": {"total": 1, "by_source": {"two": 1}},
        "identical": {"total": 1, "by_source": {"one": 1}},
        "leaks": {"total": 1, "by_source": {"one": 1}},
        "leaked_held_out": {"total": 1, "by_source": {"two": 1}},
    }


def test_clean_data_and_pairs_without_a_line() -> None:
    clean = [SourceSplit("one", [pair("p", "a", "b")], [pair("q", "a", "b")])]
    assert audit_splits(clean)[1].summary_lines() == ["data: no duplicates, contradictions or leaks"]
    leaking = [SourceSplit("one", [pair("p", "a", "b")], [pair("p", "a", "b")])]
    assert audit_splits(leaking)[1].summary_lines()[0].endswith("held out: one 1")
