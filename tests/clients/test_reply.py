"""Answers: every error's code comes back as its class, and what is not Quorum's is never taken for a score."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from quorum_client._reply import Reply, is_unready, parse_error, parse_reply, transport_errors
from quorum_client._request import Call, compare_pairs_call, rank_call, score_call
from quorum_client.errors import (
    ERRORS_BY_CODE,
    ConnectionFailed,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MalformedJSON,
    NotReady,
    Overloaded,
    QuorumError,
    Unauthorized,
    UnexpectedResponse,
)
from tests.clients.fake_server import answer, error_body

SCORE = score_call([{"text": "abc"}, {"text": "de"}], "none", {})
RANK = rank_call("p", ["a", "bbb", "cc"], None, None, {})
PAIRS = compare_pairs_call([{"prompt": "p", "a": "x", "b": "yy"}], {})
PAGE = b"<html>Bad Gateway</html>"


def reply(status: int, body: Any, **headers: str) -> Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, httpx.Headers({name.replace("_", "-"): value for name, value in headers.items()}), raw)


def answered(call: Call[Any]) -> dict[str, Any]:
    assert call.body is not None
    return answer(call.method, call.path, json.loads(call.body))


@pytest.mark.parametrize("call", [SCORE, RANK, PAIRS])
def test_good_answer_is_typed(call: Call[Any]) -> None:
    parsed = parse_reply(call, reply(200, answered(call)))
    assert isinstance(parsed, call.answer_type)
    assert parsed.model_dump(exclude_unset=True) == answered(call)


@pytest.mark.parametrize("code", ERRORS_BY_CODE)
def test_code_names_the_class(code: str) -> None:
    # The status is deliberately another one: the code goes first.
    error = parse_error(reply(418, error_body(code, "why it failed")))
    assert type(error) is ERRORS_BY_CODE[code]
    assert (error.code, error.status, error.message, error.request_id) == (code, 418, "why it failed", "r1")


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (400, InvalidRequest),
        (401, Unauthorized),
        (409, InvalidRequest),
        (422, InvalidRequest),
        (429, Overloaded),
        (500, InternalError),
        (503, NotReady),
        (504, DeadlineExceeded),
        (507, InternalError),
    ],
)
def test_unknown_code_goes_by_status_and_keeps_its_name(status: int, cls: type[QuorumError]) -> None:
    error = parse_error(reply(status, error_body("bundle_corrupt")))
    assert type(error) is cls
    assert not isinstance(error, MalformedJSON)
    assert error.code == "bundle_corrupt"


@pytest.mark.parametrize("retryable", [True, False])
def test_server_says_whether_a_retry_helps(retryable: bool) -> None:
    assert parse_error(reply(500, error_body("internal_error", retryable=retryable))).retryable is retryable


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("-1", None), ("nan", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("", None)],
)
def test_retry_after_in_seconds(header: str, seconds: float | None) -> None:
    error = parse_error(reply(429, error_body("overloaded"), retry_after=header))
    assert error.retry_after_s == seconds


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(404, False), (302, False), (429, True), (500, True), (502, True), (503, True), (504, False)],
)
@pytest.mark.parametrize("body", [PAGE, b"", {"detail": "Not Found"}, [1], {"error": {"code": "x"}}])
def test_answers_of_others_are_unexpected(status: int, retryable: bool, body: Any) -> None:
    error = parse_error(reply(status, body, content_type="text/html", retry_after="2"))
    assert type(error) is UnexpectedResponse
    assert f"HTTP {status}, text/html" in error.message
    assert (error.retryable, error.status, error.retry_after_s) == (retryable, status, 2.0)


@pytest.mark.parametrize("body", [PAGE, b"", b"{", [], {}, {"results": []}])
def test_success_that_is_not_ours_is_no_score(body: Any) -> None:
    with pytest.raises(UnexpectedResponse) as caught:
        parse_reply(SCORE, reply(200, body))
    assert not caught.value.retryable


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_success_with_what_is_not_a_number_is_no_score(number: str) -> None:
    body = json.dumps(answered(SCORE)).replace("4.0", number, 1).encode()
    with pytest.raises(UnexpectedResponse):
        parse_reply(SCORE, reply(200, body))


@pytest.mark.parametrize(
    ("call", "changes"),
    [
        (SCORE, {"results": answered(SCORE)["results"][:1]}),
        (PAIRS, {"results": []}),
        (RANK, {"results": answered(RANK)["results"][:2]}),
        (RANK, {"order": [1, 1, 0]}),
        (RANK, {"order": [1, 2]}),
        (RANK, {"best": 0}),
    ],
)
def test_answer_to_another_request_is_refused(call: Call[Any], changes: dict[str, Any]) -> None:
    with pytest.raises(UnexpectedResponse, match="does not fit the request"):
        parse_reply(call, reply(200, {**answered(call), **changes}))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (httpx.ConnectError("refused"), ConnectionFailed),
        (httpx.ConnectTimeout("slow"), ConnectionFailed),
        (httpx.ReadError("reset"), ConnectionFailed),
        (httpx.RemoteProtocolError("closed"), ConnectionFailed),
        (httpx.ReadTimeout("slow"), DeadlineExceeded),
        (httpx.WriteTimeout("slow"), DeadlineExceeded),
        (httpx.PoolTimeout("slow"), DeadlineExceeded),
        (TimeoutError(), DeadlineExceeded),
        (httpx.DecodingError("gzip"), UnexpectedResponse),
    ],
)
def test_what_httpx_raises_enters_the_tree(raised: Exception, expected: type[QuorumError]) -> None:
    with pytest.raises(QuorumError) as caught, transport_errors(httpx.URL("http://h"), "r1"):
        raise raised
    assert type(caught.value) is expected
    assert caught.value.__cause__ is raised
    assert caught.value.request_id == "r1"


def test_unready_is_told_from_a_wrong_address() -> None:
    assert is_unready(NotReady("starting"))
    assert is_unready(ConnectionFailed("refused"))
    assert is_unready(DeadlineExceeded("late"))
    assert is_unready(parse_error(reply(503, PAGE)))
    assert not is_unready(parse_error(reply(404, PAGE)))
    assert not is_unready(Unauthorized("no key"))
