"""Each rule of the wire types: what is taken, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from quorum_client.types import (
    ComparePair,
    CompareRequest,
    EnsembleRef,
    Margin,
    RankRequest,
    ScoreItem,
    ScoreRequest,
    ScoreResult,
)

DIALOGUE = [{"role": "user", "content": "Hi"}]
PAIR = {"prompt": "p", "response": "r"}


@pytest.mark.parametrize(
    "fields",
    [
        PAIR,
        {"prompt": DIALOGUE, "response": "r"},
        {**PAIR, "reference": "r0"},
        {"text": "t"},
        {"token_ids": [0, 5]},
        {"text": "t", "group": "p"},
        {"text": "t", "prompt": "p"},
        {"token_ids": [0, 5], "group": "p"},
        # Empty and broken texts are an item's own error, found where it is encoded: its neighbours are still scored.
        {"text": "\ud800"},
        {"prompt": "", "response": ""},
        {"text": ""},
        {"token_ids": []},
    ],
)
def test_item_shapes(fields: dict[str, Any]) -> None:
    item = ScoreItem.model_validate(fields)
    assert item.model_dump(exclude_none=True) == fields


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "p"},
        {"response": "r"},
        {**PAIR, "text": "t"},
        {**PAIR, "token_ids": [1]},
        {"text": "t", "token_ids": [1]},
        {"text": "t", "reference": "r0"},
        {"reference": "r0"},
        {"prompt": [], "response": "r"},
        {"prompt": [{"role": "wizard", "content": "x"}], "response": "r"},
        {"prompt": [{"role": "user"}], "response": "r"},
        {"prompt": 3, "response": "r"},
        {"prompt": "p", "response": 3},
        {"token_ids": [-1]},
        {"token_ids": [1.0]},
        {"token_ids": ["1"]},
        {"token_ids": [True]},
        {"text": "t", "txet": "misspelt"},
        {**PAIR, "group": "p"},
        {"text": "t", "prompt": "p", "group": "p"},
        {"text": "t", "prompt": [{"role": "user", "content": "p"}]},
        {"token_ids": [0], "prompt": "p"},
        {"group": "p"},
    ],
)
def test_other_item_shapes_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ScoreItem.model_validate(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": []},
        {"inputs": [PAIR], "mode": "max"},
        {"inputs": [PAIR], "mode": "lcb", "beta": -1},
        {"inputs": [PAIR], "mode": "lcb", "beta": math.nan},
        {"inputs": [PAIR], "mode": "lcb", "beta": math.inf},
        {"inputs": [PAIR], "mode": "lcb", "beta": "0.5"},
        {"inputs": [PAIR], "mode": "lcb", "beta": True},
        {"inputs": [PAIR], "normalize": "off"},
        {"inputs": [PAIR], "normalize": 0},
        {"inputs": [PAIR], "center": "pair"},
        {"inputs": [PAIR], "truncate": "middle"},
        {"inputs": [PAIR], "ensemble": ""},
        {"inputs": [PAIR], "normalise": False},
    ],
)
def test_score_options_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ScoreRequest.model_validate(fields)


def test_beta_may_be_a_whole_number() -> None:
    assert ScoreRequest.model_validate({"inputs": [PAIR], "mode": "lcb", "beta": 2}).beta == 2.0


def test_score_defaults() -> None:
    request = ScoreRequest.model_validate({"inputs": [PAIR]})
    assert (request.mode, request.beta, request.center, request.normalize) == (None, None, "none", True)


@pytest.mark.parametrize("fields", [{"prompt": "p", "candidates": []}, {"candidates": ["a"]}, {"prompt": "p"}])
def test_rank_needs_prompt_and_candidates(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RankRequest.model_validate(fields)


def test_compare_takes_one_pair_or_many() -> None:
    pair = {"prompt": "p", "a": "x", "b": "y"}
    expected = [ComparePair(prompt="p", a="x", b="y")]
    assert CompareRequest.model_validate(pair).as_pairs() == expected
    assert CompareRequest.model_validate({"pairs": [pair]}).as_pairs() == expected
    for wrong in ({}, {"prompt": "p", "a": "x"}, {"pairs": []}, {**pair, "pairs": [pair]}, {"a": "x", "pairs": [pair]}):
        with pytest.raises(ValidationError):
            CompareRequest.model_validate(wrong)


def test_answers_ignore_fields_of_newer_servers() -> None:
    assert EnsembleRef.model_validate({"name": "n", "version": "v", "new": 1}) == EnsembleRef(name="n", version="v")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("model", "fields"),
    [(ScoreResult, {"score": None}), (ScoreResult, {"members": [0.0]}), (Margin, {"mean": 0.0, "std": None})],
)
def test_what_is_not_a_number_is_never_a_score(model: type[BaseModel], fields: dict[str, Any], number: float) -> None:
    first = next(iter(fields))
    fields = {**fields, first: [number] if first == "members" else number}
    with pytest.raises(ValidationError):
        model.model_validate(fields)
