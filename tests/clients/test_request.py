"""Requests: what is on the wire, what is refused before anything is sent, and where keys go."""

from __future__ import annotations

import base64
import json
import traceback
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from quorum_client._request import (
    ENSEMBLES_CALL,
    READY_CALL,
    Call,
    Endpoint,
    compare_call,
    compare_pairs_call,
    rank_call,
    score_call,
)
from quorum_client.errors import InvalidRequest
from quorum_client.types import ScoreItem

PAIR = {"prompt": "p", "response": "r"}


def body_of(call: Call[Any]) -> Any:
    assert call.body is not None
    return json.loads(call.body)


def sent(base_url: str, api_key: str | None = None, call: Call[Any] = ENSEMBLES_CALL) -> httpx.Request:
    with httpx.Client() as http:
        return Endpoint.parse(base_url, api_key).request(http, call, request_id="r1", remaining_s=2.5)


def test_score_body_has_what_was_given_and_no_more() -> None:
    call = score_call([PAIR], "none", {})
    assert (call.method, call.path) == ("POST", "/score")
    assert body_of(call) == {"inputs": [PAIR], "center": "none", "normalize": True}
    options = {"ensemble": "e", "mode": "lcb", "beta": 0.0, "normalize": False, "truncate": "error"}
    assert body_of(score_call([PAIR], "group", options)) == {"inputs": [PAIR], "center": "group", **options}  # type: ignore[arg-type]


def test_inputs_may_be_items_or_any_mappings() -> None:
    inputs = [ScoreItem(text="t"), MappingProxyType({"token_ids": [1]}), PAIR]
    assert body_of(score_call(inputs, "none", {}))["inputs"] == [{"text": "t"}, {"token_ids": [1]}, PAIR]


def test_lone_surrogate_reaches_the_server_as_it_is() -> None:
    # What it means for the item and its neighbours is the server's to say, in the one error shape.
    assert body_of(score_call([{"text": "a\ud800"}, PAIR], "none", {}))["inputs"][0] == {"text": "a\ud800"}


def test_rank_and_compare_bodies() -> None:
    dialogue = [{"role": "user", "content": "Hi"}]
    assert body_of(rank_call(dialogue, ["a", "b"], None, None, {"mode": "min"})) == {
        "prompt": dialogue,
        "candidates": ["a", "b"],
        "mode": "min",
        "normalize": True,
    }
    assert body_of(compare_call("p", "x", "y", {})) == {"prompt": "p", "a": "x", "b": "y"}
    pairs = [{"prompt": "p", "a": "x", "b": "y"}]
    assert body_of(compare_pairs_call(pairs, {"ensemble": "e"})) == {"pairs": pairs, "ensemble": "e"}


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([], {}, "inputs"),
        ([PAIR, {"prompt": "p"}], {}, r"inputs\.1: prompt and response go together"),
        ("text", {}, r"inputs\.0"),
        (PAIR, {}, r"inputs\.0"),
        ([PAIR], {"mode": "max"}, "mode"),
        ([PAIR], {"beta": -1.0}, "beta"),
        ([PAIR], {"beta": float("nan")}, "beta"),
        ([PAIR], {"moed": "min"}, "moed: Extra inputs are not permitted"),
    ],
)
def test_wrong_arguments_are_named(inputs: Any, options: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        score_call(inputs, "none", options)


def test_messages_hold_none_of_the_text() -> None:
    with pytest.raises(InvalidRequest) as caught:
        score_call([{"prompt": "my secret", "response": "my secret", "text": "my secret"}], "none", {})
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("http://h", "http://h/v1/ensembles"),
        ("http://h:8000/", "http://h:8000/v1/ensembles"),
        ("https://h/team/a", "https://h/team/a/v1/ensembles"),
        ("https://h/team/a//", "https://h/team/a/v1/ensembles"),
        ("http://[::1]:8000", "http://[::1]:8000/v1/ensembles"),
    ],
)
def test_base_url_may_carry_a_path(base_url: str, url: str) -> None:
    assert str(sent(base_url).url) == url


def test_key_in_the_address_becomes_basic_auth_and_leaves_the_address() -> None:
    endpoint = Endpoint.parse("http://x:K%40y@h:8000/base", None)
    assert endpoint.authorization == "Basic " + base64.b64encode(b"x:K@y").decode()
    assert str(endpoint.url) == "http://h:8000/base"
    assert "K" not in repr(endpoint)
    assert sent("http://x:K%40y@h").headers["authorization"] == endpoint.authorization


def test_api_key_is_a_bearer_token_and_goes_first() -> None:
    assert sent("http://h", "secret").headers["authorization"] == "Bearer secret"
    assert sent("http://x:other@h", "secret").headers["authorization"] == "Bearer secret"
    assert "authorization" not in sent("http://h").headers


@pytest.mark.parametrize("base_url", ["", "h:8000", "ftp://h", "http://", "/score", "http://h:port", "http://h\n"])
def test_other_addresses_are_refused(base_url: str) -> None:
    with pytest.raises(InvalidRequest, match="base_url"):
        Endpoint.parse(base_url, None)


@pytest.mark.parametrize("api_key", ["", "a b", "key\n", "schlüssel"])
def test_keys_that_cannot_be_sent_are_refused_without_showing_them(api_key: str) -> None:
    with pytest.raises(InvalidRequest, match="api_key") as caught:
        Endpoint.parse("http://h", api_key)
    assert not api_key or api_key not in caught.value.message


def test_deadline_travels_as_header_and_as_timeouts() -> None:
    request = sent("http://h", call=score_call([PAIR], "none", {}))
    assert request.headers["x-quorum-timeout-ms"] == "2500"
    assert request.headers["x-request-id"] == "r1"
    assert request.headers["content-type"] == "application/json"
    assert request.extensions["timeout"] == {"connect": 2.5, "read": 2.5, "write": 2.5, "pool": 2.5}


def test_get_has_no_body() -> None:
    request = sent("http://h", call=READY_CALL)
    assert (request.method, request.content, request.url.path) == ("GET", b"", "/readyz")
    assert "content-type" not in request.headers


@pytest.mark.parametrize(
    "base_url", ["http://x:se/cretKEY@host", "http://x:se?cretKEY@host", "http://x:se#cretKEY@host"]
)
def test_no_part_of_a_key_shows_in_the_error_of_a_bad_address(base_url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Endpoint.parse(base_url, None)
    shown = "".join(traceback.format_exception_only(caught.value)) + repr(caught.value)
    assert "'se" not in shown
    assert "cret" not in shown
    assert caught.value.__suppress_context__  # nor in the chain that a traceback prints
