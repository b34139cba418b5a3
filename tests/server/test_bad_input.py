"""Every bad request gets the one error shape and the right code, tells no user text, and changes nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from quorum_client.errors import InternalError
from quorum_server.service import ScoringService
from tests.server.conftest import Service, serving
from tests.server.fake_engine import FakeEngine

SECRET = "correct horse battery staple"
PAIR = {"prompt": "Hi", "response": "Hello"}
ITEM = '{"prompt": "Hi", "response": "%s"}'


def score(**changes: Any) -> str:
    return json.dumps({"inputs": [PAIR]} | changes)


CASES: dict[str, tuple[str, str | bytes, int, str]] = {
    "not JSON": ("/score", f"{{{SECRET}", 400, "malformed_json"),
    "empty body": ("/score", "", 400, "malformed_json"),
    "trailing text": ("/score", score() + SECRET, 400, "malformed_json"),
    "not UTF-8": ("/score", b'{"inputs": [{"text": "\xff\xfe"}]}', 400, "malformed_json"),
    "UTF-16": ("/score", score().encode("utf-16"), 400, "malformed_json"),
    "nested too deep": ("/score", "[" * 100_000, 400, "malformed_json"),
    "nested too deep, closed": ("/score", '{"inputs": ' + "[" * 5000 + "]" * 5000 + "}", 400, "malformed_json"),
    "nested 250 deep": ("/score", '{"inputs": ' + "[" * 250 + "]" * 250 + "}", 400, "malformed_json"),
    "nested 600 deep": ("/score", '{"inputs": ' + "[" * 600 + "]" * 600 + "}", 400, "malformed_json"),
    "nested 600 deep with a lone surrogate": (
        "/score", '{"inputs": ' + "[" * 600 + r'"\ud800"' + "]" * 600 + "}", 400, "malformed_json",
    ),
    "NaN and a lone surrogate": (
        "/score", '{"inputs": [%s], "beta": NaN}' % (ITEM % r"\ud800"), 400, "malformed_json",
    ),
    "NaN": ("/score", '{"inputs": [%s], "mode": "lcb", "beta": NaN}' % (ITEM % "a"), 400, "malformed_json"),
    "Infinity": ("/score", '{"inputs": [%s], "beta": Infinity}' % (ITEM % "a"), 400, "malformed_json"),
    "beta beyond a double": ("/score", '{"inputs": [%s], "beta": 1e999}' % (ITEM % "a"), 422, "invalid_request"),
    "lone surrogate": ("/score", '{"inputs": [%s]}' % (ITEM % r"\ud800 a"), 422, "invalid_unicode"),
    "lone trailing surrogate": ("/score", '{"inputs": [%s]}' % (ITEM % r"a\udc00"), 422, "invalid_unicode"),
    "lone surrogate in an option": (
        "/score", r'{"ensemble": "\ud800", "inputs": [%s]}' % (ITEM % "a"), 422, "invalid_request",
    ),
    "lone surrogate in a field's name": (
        "/score", r'{"\ud800": 1, "inputs": [%s]}' % (ITEM % "a"), 422, "invalid_request",
    ),
    "not an object": ("/score", f'["{SECRET}"]', 422, "invalid_request"),
    "null": ("/score", "null", 422, "invalid_request"),
    "a string": ("/score", f'"{SECRET}"', 422, "invalid_request"),
    "no inputs": ("/score", score(inputs=[]), 422, "invalid_request"),
    "inputs missing": ("/score", "{}", 422, "invalid_request"),
    "inputs of a wrong type": ("/score", score(inputs=SECRET), 422, "invalid_request"),
    "an input of a wrong type": ("/score", score(inputs=[SECRET]), 422, "invalid_request"),
    "response missing": ("/score", score(inputs=[{"prompt": SECRET}]), 422, "invalid_request"),
    "two forms at once": ("/score", score(inputs=[PAIR | {"text": SECRET}]), 422, "invalid_request"),
    "unknown field": ("/score", score(moed="lcb"), 422, "invalid_request"),
    "unknown field that is text": ("/score", score(**{SECRET: 1}), 422, "invalid_request"),
    "unknown role": (
        "/score", score(inputs=[{"prompt": [{"role": SECRET, "content": "x"}], "response": "a"}]), 422,
        "invalid_request",
    ),
    "dialogue without turns": ("/score", score(inputs=[{"prompt": [], "response": "a"}]), 422, "invalid_request"),
    "negative token id": ("/score", score(inputs=[{"token_ids": [-1]}]), 422, "invalid_request"),
    "token id that is text": ("/score", score(inputs=[{"token_ids": [SECRET]}]), 422, "invalid_request"),
    "unknown mode": ("/score", score(mode=SECRET), 422, "invalid_request"),
    "negative beta": ("/score", score(mode="lcb", beta=-1), 422, "invalid_request"),
    "beta that is text": ("/score", score(mode="lcb", beta="0.5"), 422, "invalid_request"),
    "beta that is a truth value": ("/score", score(mode="lcb", beta=True), 422, "invalid_request"),
    "normalize that is text": ("/score", score(normalize="off"), 422, "invalid_request"),
    "normalize that is a number": ("/score", score(normalize=0), 422, "invalid_request"),
    "unknown center": ("/score", score(center=SECRET), 422, "invalid_request"),
    "unknown truncate": ("/score", score(truncate=SECRET), 422, "invalid_request"),
    "group centring of one": ("/score", score(center="group"), 422, "invalid_request"),
    "reference centring without one": ("/score", score(center="reference"), 422, "invalid_request"),
    "empty text alone": ("/score", score(inputs=[{"prompt": "Hi", "response": ""}]), 422, "empty_text"),
    "blank text alone": ("/score", score(inputs=[{"text": " \n\t"}]), 422, "empty_text"),
    "no token ids": ("/score", score(inputs=[{"token_ids": []}]), 422, "empty_text"),
    "token id out of vocabulary": ("/score", score(inputs=[{"token_ids": [99999]}]), 422, "token_id_out_of_range"),
    "token id beyond 64 bits": ("/score", score(inputs=[{"token_ids": [10**30]}]), 422, "token_id_out_of_range"),
    "over-long and told not to cut": (
        "/score", score(inputs=[{"text": "a" * 500}], truncate="error"), 422, "too_long",
    ),
    "unknown ensemble": ("/score", score(ensemble=SECRET), 404, "ensemble_not_found"),
    "unknown version": ("/score", score(ensemble="tiny@000000000000"), 404, "ensemble_not_found"),
    "empty ensemble": ("/score", score(ensemble=""), 422, "invalid_request"),
    "a 10 MB prompt": (
        "/score", score(inputs=[{"prompt": "a" * 10_000_000, "response": "b"}]), 413, "request_too_large",
    ),
    "100,000 inputs": ("/score", score(inputs=[{"text": "a"}] * 100_000), 413, "request_too_large"),
    "100,000 candidates": (
        "/rank", json.dumps({"prompt": "Hi", "candidates": ["a"] * 100_000}), 413, "request_too_large",
    ),
    "a dialogue of 100,000 turns": (
        "/score", score(inputs=[{"prompt": [{"role": "user", "content": ""}] * 100_000, "response": "a"}]), 413,
        "request_too_large",
    ),
    "100,000 unknown fields": ("/score", score(**{f"f{n}": 1 for n in range(100_000)}), 422, "invalid_request"),
    "100,000 unknown fields in an item": (
        "/score", score(inputs=[{f"f{n}": 1 for n in range(100_000)}]), 422, "invalid_request",
    ),
    "100,000 unknown fields in a turn": (
        "/score", score(inputs=[{"prompt": [{f"f{n}": 1 for n in range(100_000)}], "response": "a"}]), 422,
        "invalid_request",
    ),
    "a long prompt times many candidates": (
        "/rank", json.dumps({"prompt": "a" * 100_000, "candidates": ["b"] * 4000}), 413, "request_too_large",
    ),
    "no candidates": ("/rank", json.dumps({"prompt": "Hi", "candidates": []}), 422, "invalid_request"),
    "group centring of one candidate": (
        "/rank", json.dumps({"prompt": "Hi", "candidates": ["a"], "center": "group"}), 422, "invalid_request",
    ),
    "a pair without b": ("/compare", json.dumps({"prompt": "Hi", "a": "yes"}), 422, "invalid_request"),
    "a pair and pairs": (
        "/compare", json.dumps({"prompt": "Hi", "a": "x", "b": "y", "pairs": []}), 422, "invalid_request",
    ),
    "a blank side": ("/compare", json.dumps({"prompt": "Hi", "a": " ", "b": "y"}), 422, "empty_text"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
async def test_bad_request(service: Service, name: str, caplog: pytest.LogCaptureFixture) -> None:
    path, body, status, code = CASES[name]
    with caplog.at_level(logging.INFO):
        reply = await service.http.post(path, content=body)
    assert reply.status_code == status, reply.text
    assert_error(reply, code)
    assert SECRET not in reply.text
    assert SECRET not in caplog.text
    assert service.engine.passes == []
    assert service.runtime.admission.held_tokens == 0
    after = await service.http.post("/score", content=score())
    assert after.status_code == 200


def assert_error(reply: Any, code: str) -> None:
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json()) == {"error"}
    error = reply.json()["error"]
    assert set(error) == {"code", "message", "retryable", "request_id"}
    assert error["code"] == code
    assert error["message"]
    assert error["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("field", "body"), [("moed", score(moed=1)), ("inputs.0.prompt", score(inputs=[{"prompt": 3}]))]
)
async def test_the_message_names_the_field(service: Service, field: str, body: str) -> None:
    assert field in (await service.http.post("/score", content=body)).json()["error"]["message"]


@pytest.mark.parametrize("timeout_ms", ["soon", "-1", "1e3", ""])
async def test_a_timeout_that_is_none(service: Service, timeout_ms: str) -> None:
    reply = await service.http.post("/score", content=score(), headers={"X-Quorum-Timeout-Ms": timeout_ms})
    assert reply.status_code == 422
    assert_error(reply, "invalid_request")
    assert "timeout" in reply.json()["error"]["message"].lower()


async def test_unknown_route_and_wrong_method(service: Service) -> None:
    unknown = await service.http.get("/nowhere")
    assert unknown.status_code == 404
    assert_error(unknown, "not_found")
    wrong = await service.http.get("/score")
    assert wrong.status_code == 405
    assert_error(wrong, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert_error(await service.http.get("/v1/ensembles/other"), "ensemble_not_found")


async def test_a_body_that_grows_beyond_the_limit_is_cut_off(fake_bundle: Path) -> None:
    """Sent in chunks, so that no Content-Length announces it; nothing beyond the limit is read."""
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b" " * 1000

    async with serving(fake_bundle, FakeEngine(), max_body_bytes=10_000) as service:
        reply = await service.http.post("/score", content=chunks())
    assert reply.status_code == 413
    assert_error(reply, "request_too_large")
    assert read == 11


async def test_what_the_engine_fails_at_is_the_items_error_and_logged(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of all items: an error of the request's is one that its client would send again, to no avail."""
    service.engine.error = ZeroDivisionError("planted detail")
    bodies = {
        "/score": {"inputs": [{"text": "a"}]},
        "/compare": {"pairs": [{"prompt": "a", "a": "b", "b": "c"}]},
    }
    for path, body in bodies.items():
        reply = await service.http.post(path, json=body)
        assert [result["error"]["code"] for result in reply.json()["results"]] == ["scoring_failed"]
    for path, body in {
        "/rank": {"prompt": "a", "candidates": ["b", "c"]},
        "/compare": {"prompt": "a", "a": "b", "b": "c"},
        "/get_reward": {"query": ["a", "b"]},
        "/vllm/classify": {"input": "a"},
    }.items():
        reply = await service.http.post(path, json=body)
        assert reply.status_code == 422
        assert_error(reply, "scoring_failed")
        assert reply.json()["error"]["retryable"] is False
        assert "planted" not in reply.text
    assert "ZeroDivisionError: planted detail" in caplog.text


async def test_an_internal_error_is_hidden_and_logged(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(error: Exception) -> NoReturn:
        raise error

    monkeypatch.setattr(ScoringService, "score", lambda *_: fail(InternalError("planted detail")))
    known = await service.http.post("/score", content=score())
    monkeypatch.setattr(ScoringService, "score", lambda *_: fail(ZeroDivisionError("planted detail")))
    unexpected = await service.http.post("/score", content=score(), headers={"x-request-id": "find-me"})
    for reply in (known, unexpected):
        assert reply.status_code == 500
        assert_error(reply, "internal_error")
        assert reply.json()["error"]["retryable"] is True
        assert "planted" not in reply.text
    assert "find-me" in caplog.text
    assert "ZeroDivisionError: planted detail" in caplog.text


async def test_too_many_problems_are_counted(service: Service) -> None:
    body = score(**{f"unknown{n}": 1 for n in range(50)})
    message = (await service.http.post("/score", content=body)).json()["error"]["message"]
    assert "and 47 more" in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", {"inputs": [{"token_ids": ["1"] * 1000}] * 50}),
        ("/score", {"inputs": [{"text": 1}] * 1000}),
        ("/score", {"inputs": [{"prompt": [{"role": "user"}] * 1000, "response": "a"}] * 50}),
        ("/rank", {"prompt": "Hi", "candidates": [1] * 1000}),
        ("/compare", {"pairs": [{"prompt": 1, "a": "x", "b": "y"}] * 1000}),
    ],
)
async def test_a_long_list_of_wrong_values_is_not_described_one_by_one(
    service: Service, path: str, body: dict[str, Any]
) -> None:
    """A million descriptions took 3 seconds, in which nothing else of the server ran, and a gigabyte."""
    reply = await service.http.post(path, json=body)
    assert reply.status_code == 422
    message = reply.json()["error"]["message"]
    assert "more" not in message
    # One problem, or one for each branch that a prompt can be: text, dialogue.
    assert message.count(";") <= 1
