"""What holds for every other system's routes alike: overload, the end, limits, centring, headers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Service, serving
from tests.server.fake_engine import FakeEngine
from tests.server.test_routes_vllm_and_sglang import CHAT, RESPONSE, native

BODIES = [
    ("/vllm/classify", {"input": "b" * 50}, 503),
    ("/sglang/v1/embeddings", {"input": "b" * 50}, 503),
    ("/tei/predict", {"inputs": "b" * 50}, 429),
    ("/score", {"inputs": [{"text": "b" * 50}]}, 429),
]


@pytest.mark.parametrize(
    ("query", "mode", "beta"),
    [("", "mean", None), ("?mode=lcb", "lcb", "1.0"), ("?mode=lcb&beta=2.5", "lcb", "2.5"), ("?beta=2", "mean", None)],
)
async def test_every_answer_says_by_which_mode_and_beta(
    service: Service, query: str, mode: str, beta: str | None
) -> None:
    for path, body in (
        ("/vllm/classify", {"input": "a"}),
        ("/sglang/classify", {"text": "a"}),
        ("/tei/predict", {"inputs": "a"}),
        ("/get_reward", {"query": ["a"]}),
    ):
        reply = await service.http.post(path + query, json=body)
        assert reply.status_code == 200
        assert (reply.headers["x-quorum-mode"], reply.headers.get("x-quorum-beta")) == (mode, beta)


async def test_pairs_are_centred_by_their_prompt(service: Service) -> None:
    """By the mean over members a centred reward is the reward minus the mean of its prompt's."""
    pairs = [("Hi", "a"), ("Ho", "bb"), ("Hi", "ccc"), ("Ho", "dddd")]
    plain = await native(service, [{"prompt": prompt, "response": text} for prompt, text in pairs], mode="mean")
    first, second = (plain[0] + plain[2]) / 2, (plain[1] + plain[3]) / 2
    centred = [plain[0] - first, plain[1] - second, plain[2] - first, plain[3] - second]

    async def ask(path: str, body: dict[str, Any]) -> Any:
        reply = await service.http.post(f"{path}?center=group&mode=mean", json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    prompts, texts = [prompt for prompt, _ in pairs], [text for _, text in pairs]
    answer = await ask("/vllm/score", {"queries": prompts, "documents": texts, "use_activation": False})
    assert [one["score"] for one in answer["data"]] == pytest.approx(centred)
    answer = await ask("/vllm/rerank", {"query": "Hi", "documents": ["a", "ccc"], "use_activation": False})
    found = {one["index"]: one["relevance_score"] for one in answer["results"]}
    assert found == pytest.approx({0: centred[0], 1: centred[2]})
    answer = await ask("/tei/rerank", {"query": "Ho", "texts": ["bb", "dddd"], "raw_scores": True})
    assert {one["index"]: one["score"] for one in answer} == pytest.approx({0: centred[1], 1: centred[3]})
    answer = await ask("/tei/predict", {"inputs": [list(pair) for pair in pairs], "raw_scores": True})
    assert [one[0]["score"] for one in answer] == pytest.approx(centred)
    chats = [[{"role": "user", "content": prompt}, {"role": "assistant", "content": text}] for prompt, text in pairs]
    assert [one["embedding"][0] for one in await ask("/sglang/classify", {"conv": chats})] == pytest.approx(centred)
    alone = await service.http.post("/vllm/score?center=group", json={"queries": "Hi", "documents": "a"})
    assert alone.status_code == 422


@pytest.mark.parametrize(("path", "body"), [*(one[:2] for one in BODIES), ("/get_reward", {"query": ["a"]})])
async def test_a_server_that_ends_says_so(service: Service, path: str, body: Any) -> None:
    service.runtime.admission.start_draining()
    async with asyncio.timeout(5):
        reply = await service.http.post(path, json=body)
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert ("unhealthy" if path.startswith("/tei") else "not_ready") in reply.text
    assert service.engine.passes == []


async def test_a_long_list_of_token_ids_is_one_item(fake_bundle: Path) -> None:
    async with serving(fake_bundle, FakeEngine(), max_items=10) as service:
        for path, field in (("/vllm/classify", "input"), ("/sglang/classify", "input_ids")):
            reply = await service.http.post(path, json={field: [20] * 50})
            assert reply.status_code == 200, reply.text
            refused = await service.http.post(path, json={field: [[20]] * 50})
            assert refused.status_code == 413


async def test_turns_and_parts_of_dialogues_are_counted(fake_bundle: Path) -> None:
    many = [*([CHAT[1]] * 50), RESPONSE]
    parts = [CHAT[1], {**RESPONSE, "content": [{"type": "text", "text": "a"}] * 50}]
    async with serving(fake_bundle, FakeEngine(), max_items=10) as service:
        for chat in (many, parts):
            for path, body in (
                ("/vllm/classify", {"messages": chat}),
                ("/sglang/classify", {"conv": chat}),
                ("/sglang/classify", {"conv": [chat, [CHAT[1], RESPONSE]]}),
                ("/sglang/classify", {"conv": [[CHAT[1], RESPONSE], chat]}),
            ):
                assert (await service.http.post(path, json=body)).status_code == 413
        wide = [CHAT[1], {**RESPONSE, **{f"field{n}": n for n in range(100)}}]
        assert (await service.http.post("/sglang/classify", json={"conv": [wide]})).status_code == 422


@pytest.mark.parametrize(("path", "body", "status"), BODIES)
@pytest.mark.parametrize(
    ("reason", "bounds"),
    [
        ("queue_tokens", {"max_queued_tokens": 60, "token_budget": 60}),
        ("queue_bytes", {"max_body_bytes": 100, "max_queued_bytes": 100}),
    ],
)
async def test_overload(
    fake_bundle: Path, path: str, body: Any, status: int, reason: str, bounds: dict[str, int]
) -> None:
    """verl gives up at once on a 429; TEI's clients wait for one."""
    engine = FakeEngine()
    async with serving(fake_bundle, engine, **bounds) as service:
        engine.gate.clear()
        first = asyncio.create_task(service.http.post("/score", json={"inputs": [{"text": "a" * 50}]}))
        await engine.has_begun.wait()
        reply = await service.http.post(path, json=body)
        assert reply.status_code == status
        assert int(reply.headers["retry-after"]) >= 1
        assert "overload" in reply.text
        assert f'quorum_rejections_total{{reason="{reason}"}} 1.0' in (await service.http.get("/metrics")).text
        engine.gate.set()
        assert (await first).status_code == 200
