"""The gateway over a fake engine and a fake generator: OpenAI's own client gets the candidate that /rank puts first."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from quorum_server.settings import Settings
from tests.clients.generation.fake_generator import FakeGenerator, refusal, serve
from tests.server import fake_engine
from tests.server.conftest import Service, serving
from tests.server.fake_engine import FakeEngine
from tests.server.tiny_bundle import VOCABULARY

ASK = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def generator() -> Iterator[FakeGenerator]:
    with serve(FakeGenerator()) as fake:
        yield fake


@pytest.fixture
async def gateway(fake_bundle: Path, generator: FakeGenerator) -> AsyncIterator[Service]:
    settings = {"generator_url": generator.url, "generator_api_key": "of-the-generator", "generator_candidates": 5}
    async with serving(fake_bundle, FakeEngine(), **settings) as running:
        yield running


def client_of(service: Service, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url="http://quorum/v1", api_key="none", http_client=service.http, max_retries=0, **options
    )


async def ranked(service: Service, candidates: list[str], **options: Any) -> dict[str, Any]:
    body = {"prompt": [{"role": "user", "content": "Hi"}], "candidates": candidates, **options}
    reply = await service.http.post("/rank", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


@pytest.mark.parametrize("options", [{}, {"mode": "lcb", "beta": 2.0}, {"mode": "min", "center": "none"}])
async def test_the_choice_is_the_one_that_rank_puts_first(gateway: Service, options: dict[str, Any]) -> None:
    texts = [f"Hi #{seed}" for seed in range(7, 12)]
    expected = await ranked(gateway, texts, **options)
    answer = await client_of(gateway).chat.completions.create(
        model="base", messages=ASK, seed=7, n=2, extra_body={"quorum": {"return_candidates": True, **options}}
    )
    assert [choice.message.content for choice in answer.choices] == [texts[index] for index in expected["order"][:2]]
    assert [choice.index for choice in answer.choices] == [0, 1]
    first, about = answer.choices[0].quorum, answer.quorum
    result = expected["results"][expected["best"]]
    assert first == {"index": expected["best"], "rank": 1, **{k: v for k, v in result.items() if k != "error"}}
    assert (about["mode"], about["beta"], about["center"]) == (expected["mode"], expected["beta"], expected["center"])
    assert about["ensemble"] == expected["ensemble"]
    assert about["failed"] == []
    assert [one["text"] for one in about["candidates"]] == texts
    assert [one["score"] for one in about["candidates"]] == [one["score"] for one in expected["results"]]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3 * 5  # of all candidates


async def test_what_is_not_ours_is_passed_on(gateway: Service, generator: FakeGenerator) -> None:
    await client_of(gateway).chat.completions.create(
        model="base", messages=ASK, temperature=0.7, max_tokens=9, stop=["x"], logprobs=True, user="u",
        extra_body={"top_k": 3, "quorum": {"n": 3}},
    )  # fmt: skip
    (body,) = generator.behaviour.bodies
    assert body == {
        "model": "base", "messages": ASK, "n": 3, "stream": False, "temperature": 0.7, "max_tokens": 9, "stop": ["x"],
        "logprobs": True, "user": "u", "top_k": 3,
    }  # fmt: skip
    assert generator.behaviour.headers[0]["authorization"] == "Bearer of-the-generator"


async def test_completions_with_best_of(gateway: Service, generator: FakeGenerator) -> None:
    texts = [f"Hi #{seed}" for seed in range(4)]
    expected = await ranked(gateway, texts)
    answer = await client_of(gateway).completions.create(model="base", prompt="Hi", best_of=4)
    assert [choice.text for choice in answer.choices] == [texts[expected["best"]]]
    assert generator.behaviour.bodies[0] == {"model": "base", "prompt": "Hi", "n": 4, "stream": False}


@pytest.mark.parametrize("chat", [True, False])
async def test_a_stream_gives_the_same_answer(gateway: Service, chat: bool) -> None:
    client: Any = client_of(gateway)
    call, given = (
        (client.chat.completions.create, {"messages": ASK}) if chat else (client.completions.create, {"prompt": "Hi"})
    )
    whole = await call(model="base", n=2, **given)
    stream = await call(model="base", n=2, stream=True, stream_options={"include_usage": True}, **given)
    texts, ends, usage, about = ["", ""], [None, None], None, None
    async for chunk in stream:
        usage = chunk.usage or usage
        about = (chunk.model_extra or {}).get("quorum") or about
        for choice in chunk.choices:
            texts[choice.index] += ((choice.delta.content if chat else choice.text) or "") if choice else ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.message.content if chat else choice.text for choice in whole.choices]
    assert ends == ["stop", "stop"]
    assert usage == whole.usage
    assert about == whole.quorum


async def test_a_model_may_be_an_ensemble(gateway: Service, generator: FakeGenerator) -> None:
    listed = await client_of(gateway).models.list()
    assert [(one.id, one.owned_by) for one in listed.data] == [("tiny", "quorum"), ("base", "generator")]
    for model in ("tiny", None):
        body = {"messages": ASK} | ({} if model is None else {"model": model})
        reply = await gateway.http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        assert reply.json()["quorum"]["ensemble"]["name"] == "tiny"
    assert [body["model"] for body in generator.behaviour.bodies] == ["base", "base"]


async def test_candidates_without_a_score_are_reported_and_never_picked(
    gateway: Service, generator: FakeGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_engine, "NAN_ID", VOCABULARY["z"])
    texts = ["ab", "zz", " ", "abc", "abcd"]

    def edit(reply: dict[str, Any]) -> None:
        for choice in reply["choices"]:
            choice["message"]["content"] = texts[choice["index"]]
            if choice["index"] == 4:
                choice["message"] = {"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]}

    generator.behaviour.edit = edit
    expected = await ranked(gateway, ["ab", "abc"])
    reply = await gateway.http.post("/v1/chat/completions", json={"model": "base", "messages": ASK, "n": 5})
    answer = reply.json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == [
        ["ab", "abc"][index] for index in expected["order"]
    ]
    failed = {one["index"]: one["error"]["code"] for one in answer["quorum"]["failed"]}
    assert (failed[1], failed[4]) == ("non_finite_score", "not_text")
    assert set(failed) == {1, 2, 4}
    # Relative to the two that are left, not to candidates without a score.
    assert [choice["quorum"]["score"] for choice in answer["choices"]] == pytest.approx(
        [expected["results"][index]["score"] for index in expected["order"]]
    )
    exposed = (await gateway.http.get("/metrics")).text
    assert "quorum_unranked_candidates_total 3.0" in exposed
    assert "quorum_generated_candidates_total 5.0" in exposed
    assert "quorum_generated_tokens_total 15.0" in exposed
    assert "quorum_picked_std_count 1.0" in exposed


@pytest.mark.parametrize(("text", "status"), [(" ", 422), ("tool", 422), ("z", 500)])
async def test_where_no_candidate_has_a_score_there_is_no_answer(
    text: str, status: int, gateway: Service, generator: FakeGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_engine, "NAN_ID", VOCABULARY["z"])

    def edit(reply: dict[str, Any]) -> None:
        for choice in reply["choices"]:
            choice["message"]["content"] = text
            if text == "tool":
                choice["message"]["tool_calls"] = [{}]

    generator.behaviour.edit = edit
    reply = await gateway.http.post("/v1/chat/completions", json={"model": "base", "messages": ASK})
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"code", "message", "retryable", "request_id", "type", "param"}


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"messages": []}, 422, "messages"),
    ({"messages": ASK, "n": 9}, 422, "cannot be the best of 5"),
    ({"messages": ASK, "quorum": {"n": 0}}, 422, "quorum.n"),
    ({"messages": ASK, "quorum": {"bets": 1}}, 422, "quorum.bets"),
    ({"messages": ASK, "quorum": {"mode": "best"}}, 422, "quorum.mode"),
    ({"messages": ASK, "quorum": {"ensemble": "none"}}, 404, "no ensemble of this name"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 422, "messages.0"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{}]}]}, 422, "messages.1"),
]


@pytest.mark.parametrize(("body", "status", "says"), BAD)
async def test_bad_requests_never_reach_the_generator(
    body: dict[str, Any], status: int, says: str, gateway: Service, generator: FakeGenerator
) -> None:
    reply = await gateway.http.post("/v1/chat/completions", json={"model": "base", **body})
    assert reply.status_code == status
    error = reply.json()["error"]
    assert says in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert generator.behaviour.bodies == []


async def test_what_the_generator_says_is_passed_on(gateway: Service, generator: FakeGenerator) -> None:
    client = client_of(gateway)
    generator.behaviour.failures[:] = [refusal(400, "maximum context length is 8")]
    with pytest.raises(openai.UnprocessableEntityError, match="the generator answered 400: maximum context length"):
        await client.chat.completions.create(model="base", messages=ASK)
    generator.behaviour.failures[:] = [refusal(404, "The model `x` does not exist.")]
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="x", messages=ASK)
    assert caught.value.code == "model_not_found"
    generator.behaviour.failures[:] = [refusal(401, "no such key")]
    with pytest.raises(openai.InternalServerError) as failed:
        await client.chat.completions.create(model="base", messages=ASK)
    assert failed.value.status_code == 502
    assert "127.0.0.1" not in str(failed.value)
    exposed = (await gateway.http.get("/metrics")).text
    for code in ("generator_refused", "model_not_found", "generator_failed"):
        assert f'quorum_generation_failures_total{{code="{code}"}} 1.0' in exposed


async def test_an_answer_that_is_none(gateway: Service, generator: FakeGenerator) -> None:
    for edit in (lambda reply: reply["choices"].pop(), lambda reply: reply.pop("choices")):
        generator.behaviour.edit = edit
        reply = await gateway.http.post("/v1/chat/completions", json={"model": "base", "messages": ASK})
        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "generation_invalid")


async def test_a_generator_that_is_away_leaves_scoring_ready(fake_bundle: Path) -> None:
    away = "http://127.0.0.1:9/v1"
    async with serving(fake_bundle, FakeEngine(), generator_url=away, generator_timeout_s=0.5) as service:
        assert (await service.http.get("/readyz")).status_code == 200
        assert [one["id"] for one in (await service.http.get("/v1/models")).json()["data"]] == ["tiny"]
        reply = await service.http.post("/v1/chat/completions", json={"model": "base", "messages": ASK})
        assert reply.status_code in (502, 504)
        assert (await service.http.post("/rank", json={"prompt": "Hi", "candidates": ["a", "b"]})).status_code == 200


async def test_one_deadline_for_both(gateway: Service, generator: FakeGenerator) -> None:
    generator.behaviour.delay_s = 5.0
    headers = {"X-Quorum-Timeout-Ms": "200"}
    reply = await gateway.http.post("/v1/chat/completions", json={"model": "base", "messages": ASK}, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
    generator.behaviour.delay_s = 0.0
    gateway.engine.gate.clear()
    reply = await gateway.http.post("/v1/chat/completions", json={"model": "base", "messages": ASK}, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_more_than_may_wait_are_refused(fake_bundle: Path, generator: FakeGenerator) -> None:
    generator.behaviour.delay_s = 0.5
    settings = {"generator_url": generator.url, "generator_max_in_flight": 1}
    async with serving(fake_bundle, FakeEngine(), **settings) as service:
        body = {"model": "base", "messages": ASK}
        asked = [service.http.post("/v1/chat/completions", json=body) for _ in range(7)]
        replies = await asyncio.gather(*asked)
    refused = [reply for reply in replies if reply.status_code == 429]
    assert len(refused) == 2  # one at the generator, four behind it
    assert refused[0].headers["retry-after"] == "5"
    assert generator.behaviour.most_running == 1


async def test_a_client_that_leaves_ends_the_generation(gateway: Service, generator: FakeGenerator) -> None:
    generator.behaviour.delay_s = 3.0
    body = {"model": "base", "messages": ASK}
    asking = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=body))
    await asyncio.to_thread(_wait_for_body, generator)
    assert gateway.runtime.service.num_under_way == 1
    asking.cancel()
    async with asyncio.timeout(1):
        await gateway.runtime.service.wait_idle()


def _wait_for_body(generator: FakeGenerator) -> None:
    while not generator.behaviour.bodies:
        time.sleep(0.01)


async def test_requests_under_way_are_finished_when_the_server_ends(gateway: Service, generator: FakeGenerator) -> None:
    generator.behaviour.delay_s = 0.5
    asking = asyncio.create_task(gateway.http.post("/v1/chat/completions", json={"model": "base", "messages": ASK}))
    await asyncio.to_thread(_wait_for_body, generator)
    await gateway.runtime.drain(10)
    assert (await asking).status_code == 200
    reply = await gateway.http.post("/v1/chat/completions", json={"model": "base", "messages": ASK})
    assert reply.status_code == 503


async def test_without_a_generator_there_are_no_such_routes(service: Service) -> None:
    reply = await service.http.post("/v1/chat/completions", json={"messages": ASK})
    assert reply.status_code == 404
    assert "/v1/chat/completions" not in (await service.http.get("/openapi.json")).json()["paths"]


def test_the_generators_key_is_in_no_repr() -> None:
    assert "secret-key" not in repr(Settings(generator_url="http://x/v1", generator_api_key="secret-key"))


async def test_events_are_lines_of_json(gateway: Service) -> None:
    body = {"model": "base", "messages": ASK, "stream": True}
    reply = await gateway.http.post("/v1/chat/completions", json=body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in reply.text.split("\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines[:-1])
