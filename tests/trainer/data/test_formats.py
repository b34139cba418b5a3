"""Rows of every format, with TRL's own functions as the oracle, and what is refused instead of guessed."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from trl.data_utils import extract_prompt, maybe_extract_prompt

from quorum_client.types import Message
from quorum_trainer.data import PreferencePair, RowRejected, pair_of_row

SECRET = "SECRET"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def parts(pair: PreferencePair) -> tuple[Any, Any, Any]:
    """As TRL has them: a conversational prompt as plain messages."""
    prompt = pair.prompt if isinstance(pair.prompt, str) else [message.model_dump() for message in pair.prompt]
    return prompt, pair.chosen, pair.rejected


def test_our_own_format() -> None:
    row = {"prompt": "p", "chosen": " a", "rejected": "b", "margin": 2, "tie": False, "line": 99, "other": [1]}
    assert pair_of_row(row, 7) == PreferencePair(prompt="p", chosen=" a", rejected="b", margin=2.0, line=7)
    turns = [{"role": "system", "content": ""}, user("p"), assistant("q"), user("r")]
    pair = pair_of_row({"prompt": turns, "chosen": "a", "rejected": "b", "tie": True, "margin": 0})
    assert pair.prompt == [Message.model_validate(turn) for turn in turns]
    assert pair.tie
    # A table fills its columns with nulls, and its messages with fields that other rows have.
    filled = {"prompt": [{**user("p"), "name": None}], "chosen": "a", "rejected": "b", "margin": None, "tie": None}
    assert pair_of_row(filled) == PreferencePair(prompt=[Message(role="user", content="p")], chosen="a", rejected="b")


def test_explicit_prompt_conversational() -> None:
    row = {"prompt": [user("p")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert maybe_extract_prompt(row) is row  # to TRL it is explicit
    assert parts(pair_of_row(row)) == ([user("p")], "a", "b")
    assert parts(pair_of_row({**row, "prompt": "p"})) == ("p", "a", "b")


def test_a_text_beside_whole_dialogues_is_not_the_prompt() -> None:
    row = {
        "prompt": "p",
        "chosen": [user("p"), assistant("q"), user("r"), assistant("a")],
        "rejected": [user("p"), assistant("q"), user("r"), assistant("b")],
    }
    expected = maybe_extract_prompt(row)
    assert parts(pair_of_row(row)) == (expected["prompt"], "a", "b")
    assert len(expected["prompt"]) == 3
    assert pair_of_row({**row, "prompt": None}) == pair_of_row(row)


LETTERS = st.text("ab \n\u00e9", min_size=1, max_size=8)


@given(start=LETTERS, chosen=LETTERS, rejected=LETTERS)
def test_implicit_prompt_standard_is_cut_where_trl_cuts(start: str, chosen: str, rejected: str) -> None:
    row = {"chosen": start + chosen, "rejected": start + rejected}
    expected = maybe_extract_prompt(dict(row))
    if all(expected[name].strip() for name in ("prompt", "chosen", "rejected")):
        assert parts(pair_of_row(row)) == (expected["prompt"], expected["chosen"], expected["rejected"])
    else:
        with pytest.raises(RowRejected, match=r"is empty or blank|no common beginning"):
            pair_of_row(row)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is", " blue.", " green.")),  # the documentation's own
        ("Q: go? A: yes", "Q: go? A: yes, do", ("Q: go? A: ye", "s", "s, do")),  # one begins the other
        ("same", "same", ("sam", "e", "e")),
    ],
)
def test_implicit_prompts_worked_by_hand(chosen: str, rejected: str, expected: tuple[str, str, str]) -> None:
    row = {"chosen": chosen, "rejected": rejected}
    assert tuple(extract_prompt(row)[name] for name in ("prompt", "chosen", "rejected")) == expected
    assert parts(pair_of_row(row)) == expected


@pytest.mark.parametrize(("chosen", "rejected"), [("yes ", "no"), ("a", "a"), ("a", "abc"), ("", "abc")])
def test_no_common_beginning_is_no_prompt(chosen: str, rejected: str) -> None:
    # TRL makes a prompt of "yes " here, of all but the last character.
    with pytest.raises(RowRejected, match="prompt: is missing, and chosen and rejected have no common beginning"):
        pair_of_row({"chosen": chosen, "rejected": rejected})


TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": LETTERS}), min_size=1, max_size=3
)


@given(start=TURNS, chosen=TURNS, rejected=TURNS)
def test_implicit_prompt_conversational_is_cut_where_trl_cuts(start: Any, chosen: Any, rejected: Any) -> None:
    row = {"chosen": start + chosen, "rejected": start + rejected}
    expected = maybe_extract_prompt(dict(row))
    single = all(
        len(expected[side]) == 1 and expected[side][0]["role"] == "assistant" for side in ("chosen", "rejected")
    )
    texts = ["".join(turn["content"] for turn in expected[name]) for name in ("prompt", "chosen", "rejected")]
    if single and all(text.strip() for text in texts):
        pair = pair_of_row(row)
        assert parts(pair) == (expected["prompt"], expected["chosen"][0]["content"], expected["rejected"][0]["content"])
    else:
        with pytest.raises(RowRejected):
            pair_of_row(row)


@given(start=TURNS, chosen=LETTERS, rejected=LETTERS)
def test_a_dialogue_with_two_last_answers_is_always_read(start: Any, chosen: str, rejected: str) -> None:
    assume(chosen.strip() and rejected.strip() and any(turn["content"].strip() for turn in start))
    row = {"chosen": [*start, assistant(chosen)], "rejected": [*start, assistant(rejected)]}
    assert parts(pair_of_row(row)) == (start, chosen, rejected)


GOOD: dict[str, Any] = {"prompt": f"p {SECRET}", "chosen": f"a {SECRET}", "rejected": f"b {SECRET}"}
DIALOGUES: dict[str, Any] = {
    "chosen": [user(SECRET), assistant("a"), user("r"), assistant("b")],
    "rejected": [user(SECRET), assistant("x"), user("r"), assistant("b")],
}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (SECRET, "line: must be an object"),
        ({}, "chosen: is missing"),
        ({"prompt": SECRET, "chosen": "a"}, "rejected: is missing"),
        ({**GOOD, "prompt": 5}, "prompt: must be text or a list of messages"),
        ({**GOOD, "prompt": None}, "prompt: must be text or a list of messages"),
        ({**GOOD, "prompt": []}, "prompt: is an empty list of messages"),
        ({**GOOD, "prompt": " \n"}, "prompt: is empty or blank"),
        ({**GOOD, "prompt": [user(" ")]}, "prompt: is empty or blank"),
        ({**GOOD, "prompt": [SECRET]}, "prompt.0: must be a message"),
        ({**GOOD, "prompt": [user("a"), {"role": "user"}]}, "prompt.1.content: must be text"),
        ({**GOOD, "prompt": [user("a"), {"content": SECRET}]}, "prompt.1.role: must be one of system, user"),
        ({**GOOD, "prompt": [{"role": [SECRET], "content": "a"}]}, "prompt.0.role: must be one of"),
        ({**GOOD, "prompt": [{"from": "human", "value": SECRET}]}, "prompt.0: has fields other than role and content"),
        ({**GOOD, "prompt": [{**user("a"), SECRET: 1}]}, "prompt.0: has fields other than role and content"),
        ({**GOOD, "chosen": ["a"]}, "chosen.0: must be a message"),
        ({**GOOD, "chosen": None}, "chosen: must be text or a list of messages"),
        ({**GOOD, "rejected": [assistant("a")]}, "rejected: must be text where chosen is"),
        ({**GOOD, "chosen": "\t"}, "chosen: is empty or blank"),
        ({**GOOD, "rejected": "b \ud800"}, "rejected: holds a lone surrogate"),
        ({**GOOD, "margin": SECRET}, "margin: Input should be a valid number"),
        ({**GOOD, "margin": True}, "margin: Input should be a valid number"),
        ({**GOOD, "margin": math.inf}, "margin: Input should be a finite number"),
        ({**GOOD, "margin": 10**400}, "margin: "),
        ({**GOOD, "tie": 1}, "tie: Input should be a valid boolean"),
        ({**GOOD, "tie": True, "margin": 1}, "margin: a tie has none"),
        (DIALOGUES, "chosen: must be one assistant message after the prompt, but is 3 messages"),
        ({**DIALOGUES, "prompt": [user(SECRET)]}, "chosen: must be one assistant message after the prompt, but is 4"),
        ({"chosen": [user(SECRET), user("a")], "rejected": [user(SECRET), user("b")]}, "chosen: must end in an assist"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "prompt: is missing, and chosen and rejected"),
    ],
)  # fmt: skip
def test_rows_that_are_no_pair(row: Any, message: str) -> None:
    with pytest.raises(RowRejected) as caught:
        pair_of_row(row)
    assert str(caught.value).startswith(message)
    assert SECRET not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "prompt", "chosen"]) | st.text(max_size=2), inner, max_size=3
        )
    ),
    max_leaves=8,
)
FIELDS = ("prompt", "chosen", "rejected", "margin", "tie")


@given(row=JSON | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
def test_whatever_a_row_is_it_is_a_pair_or_refused(row: Any) -> None:
    try:
        pair = pair_of_row(row)
    except RowRejected:
        return
    assert pair.chosen.strip()
    assert pair.rejected.strip()
    assert pair.margin is None or math.isfinite(pair.margin)
