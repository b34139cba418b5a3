"""What OpenRLHF's route waits for in its client's stead: room in the queue, room for bytes, an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from quorum_client.errors import Overloaded, QuorumError
from quorum_server.admission import Admission
from quorum_server.routes import openrlhf
from quorum_server.service import ScoringService
from tests.server.conftest import serving
from tests.server.fake_engine import FakeEngine
from tests.server.test_routes_openrlhf import BODY, calibrated
from tests.server.tiny_bundle import make_fake_bundle


async def test_a_full_queue_is_waited_for(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenRLHF tries five times in five seconds, and then goes on without a reward."""
    refused = asyncio.Event()
    score = ScoringService.score

    async def watched(self: ScoringService, request: Any, call: Any) -> Any:
        try:
            return await score(self, request, call)
        except Overloaded:
            refused.set()
            raise

    engine = FakeEngine()
    async with serving(fake_bundle, engine, max_queued_tokens=60, token_budget=60) as service:
        engine.gate.clear()
        first = asyncio.create_task(service.http.post("/get_reward", json={"query": ["a" * 50]}))
        await engine.has_begun.wait()
        assert (await service.http.post("/score", json={"inputs": [{"text": "b" * 50}]})).status_code == 429
        monkeypatch.setattr(ScoringService, "score", watched)
        second = asyncio.create_task(service.http.post("/get_reward", json={"query": ["b" * 50]}))
        await refused.wait()
        engine.gate.set()
        assert (await first).status_code == 200
        reply = await second
        assert reply.status_code == 200
        assert reply.json()["rewards"] == pytest.approx(calibrated(["b" * 50]).mean(axis=0))
        # The native route's client was told; OpenRLHF's was not.
        assert 'quorum_rejections_total{reason="queue_tokens"} 1.0' in (await service.http.get("/metrics")).text


async def test_room_for_the_body_is_waited_for(fake_bundle: Path) -> None:
    engine = FakeEngine()
    async with serving(fake_bundle, engine, max_body_bytes=100, max_queued_bytes=150) as service:
        engine.gate.clear()
        first = asyncio.create_task(service.http.post("/get_reward", json={"query": ["a" * 70]}))
        await engine.has_begun.wait()
        assert (await service.http.post("/score", json={"inputs": [{"text": "b" * 60}]})).status_code == 429
        second = asyncio.create_task(service.http.post("/get_reward", json={"query": ["b" * 70]}))
        unknown = await service.http.post("/get_reward", content=pieces(b'{"query": ["', b"b" * 70, b'"]}'))
        assert unknown.status_code == 429  # a length that is not declared is not waited for
        assert not second.done()
        assert service.runtime.admission.held_bytes < 100  # what waits is not in memory
        engine.gate.set()
        assert (await first).status_code == (await second).status_code == 200
        assert service.runtime.admission.held_bytes == 0
        assert 'quorum_rejections_total{reason="queue_bytes"} 2.0' in (await service.http.get("/metrics")).text
        too_large = await service.http.post("/get_reward", json={"query": ["b" * 100]})
        assert too_large.status_code == 413


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


class Slow(FakeEngine):
    """Loads when it is told to."""

    async def load(self, *args: Any, **options: Any) -> Any:
        await self.gate.wait()
        return await super().load(*args, **options)


async def test_a_server_that_is_not_ready_is_waited_for(fake_bundle: Path) -> None:
    """While ensembles load, and while an engine restarts."""
    engine = Slow()
    engine.gate.clear()
    async with serving(fake_bundle, engine, wait=False) as service:
        for path, body in (
            ("/score", {"inputs": [{"text": "a"}]}),
            ("/vllm/classify", {"input": "a"}),
            ("/sglang/classify", {"text": "a"}),
            ("/tei/predict", {"inputs": "a"}),
        ):
            refused = await service.http.post(path, json=body)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
        waiting = asyncio.create_task(service.http.post("/get_reward", json=BODY))
        empty = await service.http.post("/get_reward", json={"query": [], "prompts": [], "labels": []})
        assert empty.status_code == 200  # nothing is asked of an engine
        assert not waiting.done()
        engine.gate.set()
        assert (await waiting).status_code == 200


async def test_a_start_that_failed_is_not_waited_for(tmp_path: Path) -> None:
    bundle = make_fake_bundle(tmp_path / "broken")
    (bundle.path / "heads.safetensors").write_bytes(b"changed")
    async with serving(bundle.path, FakeEngine(), wait=False) as service:
        with pytest.raises(QuorumError):
            await service.runtime.wait_loaded()
        async with asyncio.timeout(5):
            assert (await service.http.post("/get_reward", json=BODY)).status_code == 503


async def test_who_waits_when_the_server_ends_is_told_at_once(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Admission, "estimate_wait_s", lambda self: 60.0)
    engine = FakeEngine()
    async with serving(fake_bundle, engine, max_queued_tokens=60, token_budget=60) as service:
        engine.gate.clear()
        first = asyncio.create_task(service.http.post("/get_reward", json={"query": ["a" * 50]}))
        await engine.has_begun.wait()
        second = asyncio.create_task(service.http.post("/get_reward", json={"query": ["b" * 50]}))
        await asyncio.sleep(0.1)
        assert not second.done()
        draining = asyncio.create_task(service.runtime.drain(60))
        async with asyncio.timeout(5):
            reply = await second
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) >= 1
        engine.gate.set()
        assert (await first).status_code == 200
        await draining


async def test_patience_ends(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openrlhf.PatientRoute, "patience_s", 0.0)
    engine = FakeEngine()
    async with serving(fake_bundle, engine, max_queued_tokens=60, token_budget=60) as service:
        engine.gate.clear()
        first = asyncio.create_task(service.http.post("/get_reward", json={"query": ["a" * 50]}))
        await engine.has_begun.wait()
        refused = await service.http.post("/get_reward", json={"query": ["b" * 50]})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        engine.gate.set()
        await first
