"""The routes over a fake engine: numbers worked out by hand, and what every answer carries."""

from __future__ import annotations

import asyncio
import json
import math
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from quorum_client.types import CompareListResponse, CompareResponse, EnsembleInfo, RankResponse, ScoreResponse
from tests.server.conftest import Service, serving
from tests.server.fake_engine import NAN_ID, FakeEngine, fake_raw
from tests.server.tiny_bundle import encode_by_hand, make_fake_bundle

PAIR = {"prompt": "Hi", "response": "Hello"}
SCOPE = {
    "type": "http",
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/score",
    "query_string": b"",
}
"""Of ASGI itself, for what httpx's transport cannot do."""


def calibrated(*pairs: tuple[str, str]) -> np.ndarray[Any, Any]:
    """What the fake engine's scores become: member k has mean k and scale k + 1. Shape (K, B)."""
    raw = fake_raw([encode_by_hand(*pair) for pair in pairs], 3).astype(float)
    return np.array([(row - k) / (k + 1) for k, row in enumerate(raw)])


async def test_score_is_the_engines_number_calibrated_and_aggregated(service: Service) -> None:
    body = {"inputs": [PAIR, {"prompt": "Hi", "response": "Go away"}], "mode": "lcb", "beta": 2.0}
    reply = await service.http.post("/score", json=body)
    assert reply.status_code == 200
    answer = ScoreResponse.model_validate_json(reply.content)
    members = calibrated(("Hi", "Hello"), ("Hi", "Go away"))
    for index, result in enumerate(answer.results):
        assert result.members == pytest.approx(members[:, index])  # a few float64 operations
        assert result.std == pytest.approx(np.std(members[:, index], ddof=1))
        assert result.score == pytest.approx(members[:, index].mean() - 2 * np.std(members[:, index], ddof=1))
        assert result.error is None
    assert answer.ensemble.name == "tiny"
    assert answer.ensemble.version == service.runtime.registry.get(None).version
    assert (answer.mode, answer.beta, answer.center) == ("lcb", 2.0, "none")
    num_tokens = [len(encode_by_hand("Hi", text)) for text in ("Hello", "Go away")]
    assert [result.num_tokens for result in answer.results] == num_tokens
    assert answer.usage.prompt_tokens == answer.usage.computed_tokens == sum(num_tokens)


async def test_rank_orders_by_score(service: Service) -> None:
    candidates = ["a", "zz", "Hello there", "no"]
    reply = await service.http.post("/rank", json={"prompt": "Hi", "candidates": candidates, "mode": "mean"})
    answer = RankResponse.model_validate_json(reply.content)
    means = calibrated(*(("Hi", text) for text in candidates)).mean(axis=0)
    assert answer.order == list(np.argsort(-means, kind="stable"))
    assert answer.best == answer.order[0]
    assert answer.center == "group"
    assert [result.mean for result in answer.results] == pytest.approx(means - means.mean())


async def test_compare_is_the_sigmoid_of_the_mean_margin(service: Service) -> None:
    reply = await service.http.post("/compare", json={"prompt": "Hi", "a": "yes", "b": "no"})
    answer = CompareResponse.model_validate_json(reply.content)
    members = calibrated(("Hi", "yes"), ("Hi", "no"))
    margins = members[:, 0] - members[:, 1]
    assert answer.probability == pytest.approx(1 / (1 + math.exp(-1.5 * margins.mean())))
    assert answer.margin is not None
    assert answer.margin.std == pytest.approx(np.std(margins, ddof=1))

    pairs = [{"prompt": "Hi", "a": "yes", "b": "no"}, {"prompt": "Hi", "a": "no", "b": "yes"}]
    reply = await service.http.post("/compare", json={"pairs": pairs})
    both = CompareListResponse.model_validate_json(reply.content)
    assert both.results[0].probability == pytest.approx(answer.probability)
    assert both.results[1].probability == pytest.approx(1 - answer.probability)


async def test_requests_at_the_same_time_each_get_their_own_answer(service: Service) -> None:
    service.engine.gate.clear()
    texts = [chr(ord("a") + index) * (index + 1) for index in range(20)]
    bodies = [{"inputs": [{"prompt": "Hi", "response": text}], "mode": "mean"} for text in texts]
    waiting = [asyncio.create_task(service.http.post("/score", json=body)) for body in bodies]
    await service.engine.has_begun.wait()
    service.engine.gate.set()
    replies = await asyncio.gather(*waiting)
    for text, reply in zip(texts, replies, strict=True):
        assert reply.json()["results"][0]["score"] == pytest.approx(calibrated(("Hi", text)).mean())


async def test_one_bad_item_does_not_fail_its_neighbours(service: Service) -> None:
    inputs = [PAIR, {"prompt": "Hi", "response": " "}, {"token_ids": [NAN_ID, 20]}, {"token_ids": [10_000]}]
    reply = await service.http.post("/score", json={"inputs": inputs})
    assert reply.status_code == 200
    results = reply.json()["results"]
    assert results[0]["score"] == pytest.approx(calibrated(("Hi", "Hello")).mean())
    codes = ["empty_text", "non_finite_score", "token_id_out_of_range"]
    assert [result["error"]["code"] for result in results[1:]] == codes
    assert all(result[name] is None for result in results[1:] for name in ("score", "mean", "std", "members"))


async def test_a_lone_surrogate_fails_its_own_item_only(service: Service) -> None:
    body = r"""{"inputs": [{"prompt": "Hi", "response": "Hello"}, {"text": "\ud800"},
        {"prompt": [{"role": "user", "content": "a\udc00"}], "response": "a"}]}"""
    reply = await service.http.post("/score", content=body)
    assert reply.status_code == 200
    results = reply.json()["results"]
    assert results[0]["score"] == pytest.approx(calibrated(("Hi", "Hello")).mean())
    assert [result["error"]["code"] for result in results[1:]] == ["invalid_unicode"] * 2
    ranked = await service.http.post("/rank", content=r'{"prompt": "Hi", "candidates": ["\ud800", "a", "b"]}')
    assert ranked.json()["order"][-1] == 0


async def test_a_body_without_a_content_type_is_json(service: Service) -> None:
    content = json.dumps({"inputs": [PAIR]})
    form = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d says
    for headers in ({}, form):
        assert (await service.http.post("/score", content=content, headers=headers)).status_code == 200


async def test_a_body_too_large_for_the_event_loop_gives_the_same_answer(service: Service) -> None:
    """Beyond 64 KiB a body is parsed in a thread."""
    inputs = [PAIR] * 2000
    reply = await service.http.post("/score", json={"inputs": inputs, "mode": "mean"})
    scores = [result["score"] for result in reply.json()["results"]]
    assert scores == [pytest.approx(calibrated(("Hi", "Hello")).mean())] * 2000
    wrong = await service.http.post("/score", json={"inputs": inputs, "mode": "best"})
    assert wrong.status_code == 422


async def test_ensembles_and_models_are_listed(service: Service) -> None:
    listed = (await service.http.get("/v1/ensembles")).json()["ensembles"]
    info = EnsembleInfo.model_validate(listed[0])
    version = service.runtime.registry.get(None).version
    assert (info.name, info.version, info.kind, info.dtype) == ("tiny", version, "linear", "float32")
    assert [member.calibration_scale for member in info.members] == [1.0, 2.0, 3.0]
    assert (info.default_mode, info.default_beta) == ("mean", None)
    assert (await service.http.get("/v1/ensembles/tiny")).json() == listed[0]
    models = (await service.http.get("/v1/models")).json()
    assert (models["object"], models["data"][0]["id"], models["data"][0]["object"]) == ("list", "tiny", "model")


@pytest.mark.parametrize("reference", ["tiny", "tiny@{version}"])
async def test_an_ensemble_is_found_by_name_and_by_version(service: Service, reference: str) -> None:
    name = reference.format(version=service.runtime.registry.get(None).version)
    assert (await service.http.post("/score", json={"inputs": [PAIR], "ensemble": name})).status_code == 200
    assert (await service.http.get(f"/v1/ensembles/{name}")).status_code == 200


async def test_every_answer_carries_a_request_id(service: Service) -> None:
    reply = await service.http.post("/score", json={"inputs": [PAIR]}, headers={"x-request-id": "mine-1"})
    assert reply.headers["x-request-id"] == reply.json()["id"] == "mine-1"
    for path in ("/healthz", "/nowhere", "/docs"):
        assert (await service.http.get(path, headers={"x-request-id": "mine-2"})).headers["x-request-id"] == "mine-2"
    for insane in ("a b", "x" * 129, ""):
        given = (await service.http.get("/healthz", headers={"x-request-id": insane})).headers["x-request-id"]
        assert given != insane
        assert len(given) == 32


async def test_the_openapi_page_describes_bodies_and_errors(service: Service) -> None:
    described = (await service.http.get("/openapi.json")).json()
    operation = described["paths"]["/score"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ScoreRequest"}
    assert {"400", "404", "413", "422", "429", "500", "503", "504"} <= set(operation["responses"])


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_the_documentation_needs_no_other_machine(service: Service, page: str) -> None:
    shown = await service.http.get(page)
    assert shown.status_code == 200
    named = re.findall(r"""(?:src|href)=["']([^"']+)["']""", shown.text)
    assert any(name.endswith(".js") for name in named)
    for name in named:
        assert name.startswith("/"), name
        assert (await service.http.get(name)).status_code == 200, name


async def test_a_deadline_that_passes_is_504_and_leaves_the_queue(service: Service) -> None:
    service.engine.gate.clear()
    running = asyncio.create_task(service.http.post("/score", json={"inputs": [PAIR]}))
    await service.engine.has_begun.wait()
    late = await service.http.post("/score", json={"inputs": [PAIR]}, headers={"X-Quorum-Timeout-Ms": "1"})
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "deadline_exceeded"
    service.engine.gate.set()
    assert (await running).status_code == 200
    assert len(service.engine.passes) == 1


@pytest.mark.parametrize("timeout_ms", ["60000", str(10**12), str(10**400)])
async def test_a_deadline_that_holds_changes_nothing(service: Service, timeout_ms: str) -> None:
    reply = await service.http.post("/score", json={"inputs": [PAIR]}, headers={"X-Quorum-Timeout-Ms": timeout_ms})
    assert reply.status_code == 200


async def test_the_deadline_covers_the_upload(service: Service) -> None:
    """A body of which the rest never comes."""
    sent = await speak(service, [{"type": "http.request", "body": b"{", "more_body": True}], timeout_ms=1)
    assert sent[0]["status"] == 504
    assert b"deadline_exceeded" in sent[1]["body"]


async def test_a_client_that_goes_during_its_upload_is_no_defect(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    sent = await speak(
        service, [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    )
    assert [message.get("status") for message in sent] == [499, None]
    assert caplog.text == ""


async def speak(
    service: Service, messages: list[dict[str, Any]], *, timeout_ms: int | None = None
) -> list[dict[str, Any]]:
    """POST /score in ASGI itself: `messages`, then silence. Gives what the application sent."""
    remaining = iter(messages)
    sent = []

    async def receive() -> dict[str, Any]:
        message = next(remaining, None)
        return await asyncio.Future() if message is None else message

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [] if timeout_ms is None else [(b"x-quorum-timeout-ms", str(timeout_ms).encode())]
    transport = service.http._transport
    assert isinstance(transport, httpx.ASGITransport)
    await transport.app(SCOPE | {"headers": headers}, receive, send)  # type: ignore[arg-type]
    return sent


async def test_a_client_that_goes_leaves_the_queue(service: Service) -> None:
    """Spoken in ASGI itself, since httpx's transport cannot hang up."""
    service.engine.gate.clear()
    running = asyncio.create_task(service.http.post("/score", json={"inputs": [PAIR]}))
    await service.engine.has_begun.wait()
    admission = service.runtime.admission
    before = admission.held_tokens
    hang_up = asyncio.Event()
    body = json.dumps({"inputs": [{"prompt": "Hi", "response": "gone"}]}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None: ...

    transport = service.http._transport
    assert isinstance(transport, httpx.ASGITransport)
    leaving = asyncio.create_task(transport.app(SCOPE | {"headers": []}, receive, send))  # type: ignore[arg-type]
    while admission.held_tokens == before:  # noqa: ASYNC110 - until it stands in the queue
        await asyncio.sleep(0)
    hang_up.set()
    await leaving
    assert admission.held_tokens == before
    service.engine.gate.set()
    await running
    assert len(service.engine.passes) == 1


async def test_a_full_queue_is_429_with_retry_after(fake_bundle: Path) -> None:
    async with serving(fake_bundle, FakeEngine(), max_queued_tokens=40) as service:
        service.engine.gate.clear()
        running = asyncio.create_task(service.http.post("/score", json={"inputs": [PAIR]}))
        await service.engine.has_begun.wait()
        refused = await service.http.post("/score", json={"inputs": [PAIR]})
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "overloaded"
        assert refused.json()["error"]["retryable"] is True
        assert int(refused.headers["retry-after"]) >= 1
        service.engine.gate.set()
        assert (await running).status_code == 200


async def test_before_the_ensemble_is_loaded_the_server_says_503(tmp_path: Path) -> None:
    class SlowEngine(FakeEngine):
        async def load(self, path: Path, **options: Any) -> Any:
            await self.gate.wait()
            return await super().load(path, **options)

    engine = SlowEngine()
    engine.gate.clear()
    bundle = make_fake_bundle(tmp_path / "slow").path
    async with serving(bundle, engine, wait=False) as service:
        assert (await service.http.get("/healthz")).status_code == 200
        for reply in (await service.http.get("/readyz"), await service.http.post("/score", json={"inputs": [PAIR]})):
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "not_ready"
        listed = (await service.http.get("/v1/ensembles")).json()
        assert listed["ensembles"] == []
        assert [status["state"] for status in listed["desired"]] == ["loading"]
        engine.gate.set()
        await service.runtime.wait_loaded()
        assert (await service.http.get("/readyz")).status_code == 200


async def test_a_bundle_that_cannot_be_loaded_keeps_the_server_unready(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "broken")
    (bundle.path / "heads.safetensors").write_bytes(b"changed")
    async with serving(bundle.path, FakeEngine(), wait=False) as service:
        with pytest.raises(Exception, match=r"heads\.safetensors") as failure:
            await service.runtime.wait_loaded()
        assert failure.value.code == "bundle_corrupt"  # type: ignore[attr-defined]
        reply = await service.http.get("/readyz")
        assert reply.status_code == 503
        assert "bundle_corrupt" in reply.json()["error"]["message"]


async def test_a_single_member_has_no_std(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "one", num_members=1).path
    async with serving(bundle, FakeEngine()) as service:
        result = (await service.http.post("/score", json={"inputs": [PAIR]})).json()["results"][0]
        assert result["std"] is None
        assert result["score"] is not None
        refused = await service.http.post("/score", json={"inputs": [PAIR], "mode": "uwo"})
        assert refused.status_code == 422
        assert "2 members" in refused.json()["error"]["message"]
