"""TEI's routes over a fake engine: each input's shape against /score, and its own shape of errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from quorum_client.errors import InternalError
from tests.server.conftest import Service, serving
from tests.server.fake_engine import FakeEngine
from tests.server.test_routes_openrlhf import OneNaN
from tests.server.tiny_bundle import make_fake_bundle

TEXT = "Human: Hi\n\nAssistant: Hello"
PAIR = {"prompt": "Hi", "response": "Hello"}

INPUTS: dict[str, tuple[Any, list[Any], bool]] = {
    "a text": (TEXT, [{"text": TEXT}], False),
    "a text in a list": ([TEXT], [{"text": TEXT}], False),
    "a pair": (["Hi", "Hello"], [PAIR], False),
    "a batch": ([[TEXT], ["Hi", "Hello"]], [{"text": TEXT}, PAIR], True),
    "a batch of one": ([[TEXT]], [{"text": TEXT}], True),
}


async def native(service: Service, inputs: list[Any], **options: Any) -> list[float]:
    reply = await service.http.post("/score", json={"inputs": inputs, **options})
    return [result["score"] for result in reply.json()["results"]]


@pytest.mark.parametrize("name", INPUTS)
async def test_predict(service: Service, name: str) -> None:
    inputs, items, is_batch = INPUTS[name]
    expected = await native(service, items, mode="uwo")
    for is_raw in (True, False):
        reply = await service.http.post("/tei/predict?mode=uwo", json={"inputs": inputs, "raw_scores": is_raw})
        assert reply.status_code == 200, reply.text
        shown = expected if is_raw else [1 / (1 + math.exp(-score)) for score in expected]
        predictions = reply.json() if is_batch else [reply.json()]
        assert [[one["label"] for one in row] for row in predictions] == [["LABEL_0"]] * len(items)
        assert [row[0]["score"] for row in predictions] == pytest.approx(shown)


async def test_rerank(service: Service) -> None:
    texts = ["a", "zz", "Hello there", "no"]
    expected = await native(service, [{"prompt": "Hi", "response": text} for text in texts])
    order = sorted(range(4), key=lambda index: -expected[index])
    body = {"query": "Hi", "texts": texts, "raw_scores": True}
    assert (await service.http.post("/tei/rerank", json=body)).json() == [
        {"index": index, "score": expected[index]} for index in order
    ]
    with_text = (await service.http.post("/tei/rerank", json={**body, "return_text": True})).json()
    assert [one["text"] for one in with_text] == [texts[index] for index in order]


async def test_truncation(service: Service) -> None:
    text = "a" * 100 + "b" * 100
    for direction in ("Left", "Right", "left", "right"):
        for truncate in (True, None):  # left out, the ensemble decides whether, and the request which end
            body = {"inputs": text, "raw_scores": True, "truncate": truncate, "truncation_direction": direction}
            (prediction,) = (await service.http.post("/tei/predict", json=body)).json()
            assert [prediction["score"]] == await native(service, [{"text": text}], truncate=direction.lower())
    (prediction,) = (
        await service.http.post("/tei/predict", json={"inputs": text, "raw_scores": True, "truncate": True})
    ).json()
    assert [prediction["score"]] == await native(service, [{"text": text}], truncate="right")  # TEI's default
    refused = await service.http.post("/tei/predict", json={"inputs": text, "truncate": False})
    assert refused.status_code == 422
    (prediction,) = (await service.http.post("/tei/predict", json={"inputs": text, "raw_scores": True})).json()
    assert [prediction["score"]] == await native(service, [{"text": text}])


async def test_a_direction_does_not_cut_where_the_ensemble_refuses(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "strict", truncation="error")
    async with serving(bundle.path, FakeEngine()) as service:
        body = {"inputs": "a" * 200, "truncation_direction": "Left"}
        assert (await service.http.post("/tei/predict", json=body)).status_code == 422
        assert (await service.http.post("/tei/predict", json=body | {"truncate": True})).status_code == 200
        body = {"query": "Hi", "texts": ["a" * 200], "truncation_direction": "Left"}
        assert (await service.http.post("/tei/rerank", json=body)).status_code == 422
        assert (await service.http.get("/tei/info")).json()["auto_truncate"] is False


async def test_info(service: Service) -> None:
    answer = (await service.http.get("/tei/info")).json()
    ensemble = service.runtime.registry.get(None)
    assert answer["served_model_name"] == "tiny"
    assert answer["model_sha"] == ensemble.version
    assert answer["max_input_length"] == 80
    assert answer["model_type"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    assert answer["max_client_batch_size"] == 4096
    assert answer["max_batch_tokens"] == ensemble.loaded.token_budget
    assert answer["max_concurrent_requests"] == 2_097_152 // 80
    assert answer["auto_truncate"] is True


BAD: dict[str, tuple[str, Any, int, str]] = {
    "blank": ("/tei/predict", {"inputs": " "}, 400, "empty"),
    "half a character": ("/tei/predict", {"inputs": "\ud800"}, 422, "tokenizer"),
    "three texts that are no batch": ("/tei/predict", {"inputs": ["a", "b", "c"]}, 422, "validation"),
    "no inputs": ("/tei/predict", {}, 422, "validation"),
    "an empty batch": ("/tei/predict", {"inputs": []}, 422, "validation"),
    "nothing to rank": ("/tei/rerank", {"query": "a", "texts": []}, 422, "validation"),
    "unknown mode": ("/tei/predict?mode=best", {"inputs": "a"}, 422, "validation"),
    "unknown ensemble": ("/tei/predict?ensemble=other", {"inputs": "a"}, 404, "validation"),
    "too many": ("/tei/rerank", {"query": "a", "texts": ["b"] * 5000}, 413, "validation"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_request(service: Service, name: str) -> None:
    path, body, status, error_type = BAD[name]
    reply = await service.http.post(path, content=json.dumps(body))
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"error", "error_type"}
    assert reply.json()["error_type"] == error_type
    assert reply.json()["error"]


async def test_info_errors_are_teis(service: Service) -> None:
    for query, status in (("ensemble=other", 404), ("ensemble=", 422)):
        reply = await service.http.get(f"/tei/info?{query}")
        assert reply.status_code == status
        assert reply.json()["error_type"] == "validation"


async def test_a_defect_is_a_backend_error_and_hidden(service: Service) -> None:
    service.engine.error = InternalError("planted detail")
    reply = await service.http.post("/tei/predict", json={"inputs": "a"})
    assert reply.status_code == 424
    assert reply.json()["error_type"] == "backend"
    assert "planted" not in reply.text


async def test_a_score_that_is_no_number_is_a_backend_error(fake_bundle: Path) -> None:
    async with serving(fake_bundle, OneNaN()) as service:
        for texts in (["a"], ["a", "b"]):
            reply = await service.http.post("/tei/rerank", json={"query": "Hi", "texts": texts})
            assert reply.status_code == 424
            assert reply.json()["error_type"] == "backend"


async def test_not_ready_is_unhealthy(fake_bundle: Path) -> None:
    class Slow(FakeEngine):
        async def load(self, *args: Any, **options: Any) -> Any:
            await self.gate.wait()
            return await super().load(*args, **options)

    engine = Slow()
    engine.gate.clear()
    async with serving(fake_bundle, engine, wait=False) as service:
        for reply in (
            await service.http.post("/tei/predict", json={"inputs": "a"}),
            await service.http.get("/tei/info"),
        ):
            assert reply.status_code == 503
            assert reply.json()["error_type"] == "unhealthy"
        engine.gate.set()
