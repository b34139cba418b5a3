"""Counts and sizes by hand."""

from __future__ import annotations

from typing import Any

import pytest

from quorum_client.errors import InvalidRequest, RequestTooLarge
from quorum_client.types import CompareRequest, RankRequest, ScoreRequest
from quorum_server.limits import check_items, check_text, count_chars

REQUESTS = [
    (ScoreRequest, {"inputs": [{"prompt": "abc", "response": "de"}, {"text": "fghi"}, {"token_ids": [1, 2]}]}, 9),
    (ScoreRequest, {"inputs": [{"prompt": "abc", "response": "de", "reference": "f"}]}, 3 + 2 + 3 + 1),
    (
        ScoreRequest,
        {
            "inputs": [
                {"prompt": [{"role": "system", "content": "ab"}, {"role": "user", "content": "c"}], "response": "d"}
            ]
        },
        4,
    ),
    (RankRequest, {"prompt": "abc", "candidates": ["d", "ef"]}, 3 + 1 + 3 + 2),
    (RankRequest, {"prompt": "abc", "candidates": ["d", "ef"], "reference": "g"}, 3 + 1 + 3 + 2 + 3 + 1),
    (CompareRequest, {"prompt": "abc", "a": "d", "b": "ef"}, 3 + 1 + 3 + 2),
    (CompareRequest, {"pairs": [{"prompt": "abc", "a": "d", "b": "ef"}, {"prompt": "", "a": "x", "b": "y"}]}, 9 + 2),
]


@pytest.mark.parametrize(("kind", "body", "expected"), REQUESTS)
def test_a_prompt_counts_once_for_each_response(kind: Any, body: dict[str, Any], expected: int) -> None:
    request = kind.model_validate(body)
    assert count_chars(request) == expected
    check_text(request, expected)
    with pytest.raises(RequestTooLarge, match=str(expected)):
        check_text(request, expected - 1)


@pytest.mark.parametrize("field", ["inputs", "candidates", "pairs"])
def test_any_list_of_items_is_counted(field: str) -> None:
    check_items({field: ["a"] * 3}, 3)
    with pytest.raises(RequestTooLarge, match="4 items"):
        check_items({field: ["a"] * 4}, 3)


def test_token_ids_of_one_text_are_one_item() -> None:
    check_items({"input": [5] * 4}, 3)
    with pytest.raises(RequestTooLarge, match="4 items"):
        check_items({"input": [[5]] * 4}, 3)


def test_turns_and_fields_are_counted() -> None:
    turns = [{"role": "user", "content": ""}]
    check_items({"inputs": [{"prompt": turns * 3}]}, 3)
    with pytest.raises(RequestTooLarge, match="4 turns"):
        check_items({"inputs": [{"prompt": turns * 4}]}, 3)
    many = {f"f{number}": 0 for number in range(65)}
    for body in (many, {"inputs": [many]}, {"prompt": [many]}, {"pairs": [{"prompt": [many]}]}):
        with pytest.raises(InvalidRequest, match="65 fields"):
            check_items(body, 3)
    check_items({"inputs": [{"token_ids": [1] * 10}]}, 3)


@pytest.mark.parametrize("body", [None, 3, "text", [1] * 10])
def test_what_is_no_object_is_left_to_validation(body: Any) -> None:
    check_items(body, 3)
