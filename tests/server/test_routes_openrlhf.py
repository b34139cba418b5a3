"""OpenRLHF's route over a fake engine: numbers worked out by hand, and what its clients would break on."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorum_client.errors import Overloaded, QuorumError
from quorum_server.admission import Admission
from quorum_server.engine.messages import Scores
from quorum_server.routes import openrlhf
from quorum_server.service import ScoringService
from tests.server.conftest import Service, serving
from tests.server.fake_engine import FakeEngine, fake_raw
from tests.server.tiny_bundle import CLS, SEP, VOCABULARY, make_fake_bundle

PATHS = ["/get_reward", "/openrlhf/get_reward"]
QUERIES = ["[CLS]Human: Hi\n\nAssistant: Hello[SEP]", "Human: Hi\n\nAssistant: Go away"]
BODY = {"query": QUERIES, "prompts": ["Human: Hi\n\nAssistant: "] * 2, "labels": ["x", None]}


def ids_of(text: str) -> list[int]:
    """One id a character, CLS and SEP once, whether or not the text has them."""
    inner = text.removeprefix("[CLS]").removesuffix("[SEP]")
    return [CLS, *(VOCABULARY[character] for character in inner), SEP]


def calibrated(texts: list[str]) -> np.ndarray[Any, Any]:
    """Shape (3, B): member k has mean k and scale k + 1."""
    raw = fake_raw([ids_of(text) for text in texts], 3).astype(float)
    return np.array([(row - k) / (k + 1) for k, row in enumerate(raw)])


@pytest.mark.parametrize("path", PATHS)
async def test_rewards_scores_and_logs(service: Service, path: str) -> None:
    reply = await service.http.post(f"{path}?mode=lcb&beta=2", json=BODY)
    assert reply.status_code == 200, reply.text
    members = calibrated(QUERIES)
    mean, std = members.mean(axis=0), members.std(axis=0, ddof=1)
    answer = reply.json()
    assert set(answer) == {"rewards", "scores", "extra_logs"}
    assert answer["rewards"] == pytest.approx(mean - 2 * std)  # a few float64 operations, as in all that follow
    assert answer["scores"] == pytest.approx([1 / (1 + math.exp(-reward)) for reward in mean - 2 * std])
    assert all(0 <= score <= 1 for score in answer["scores"])
    assert set(answer["extra_logs"]) == {"mean", "std", "lcb", "text_truncated"}
    assert answer["extra_logs"]["text_truncated"] == [0.0, 0.0]
    assert answer["extra_logs"]["mean"] == pytest.approx(mean)
    assert answer["extra_logs"]["std"] == pytest.approx(std)
    assert answer["extra_logs"]["lcb"] == answer["rewards"]
    version = service.runtime.registry.get(None).version
    assert reply.headers["x-quorum-ensemble"] == f"tiny@{version}"


async def test_lcb_is_logged_at_its_default_beta_under_other_modes(service: Service) -> None:
    answer = (await service.http.post("/get_reward?mode=softmin&beta=5", json=BODY)).json()
    members = calibrated(QUERIES)
    assert answer["rewards"] == pytest.approx(-np.log(np.exp(-5 * members).mean(axis=0)) / 5)
    assert answer["extra_logs"]["lcb"] == pytest.approx(members.mean(axis=0) - members.std(axis=0, ddof=1))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("query", ["", "?mode=lcb", "?extra_logs=false"])
async def test_empty_lists(service: Service, path: str, query: str) -> None:
    """OpenRLHF 0.9.1 to 0.11.0 send them to every server but the first."""
    reply = await service.http.post(path + query, json={"query": [], "prompts": [], "labels": []})
    assert reply.status_code == 200
    assert reply.json() == {"rewards": [], "scores": []}
    assert service.engine.passes == []


async def test_one_query_is_still_a_list(service: Service) -> None:
    answer = (await service.http.post("/get_reward", json={"query": QUERIES[:1]})).json()
    assert len(answer["rewards"]) == len(answer["scores"]) == len(answer["extra_logs"]["std"]) == 1


async def test_logs_can_be_switched_off(service: Service) -> None:
    answer = (await service.http.post("/get_reward?extra_logs=false", json=BODY)).json()
    assert set(answer) == {"rewards", "scores"}


async def test_one_member_has_neither_std_nor_lcb(tmp_path: Path) -> None:
    async with serving(make_fake_bundle(tmp_path / "one", num_members=1).path, FakeEngine()) as service:
        answer = (await service.http.post("/get_reward", json=BODY)).json()
        assert set(answer["extra_logs"]) == {"mean", "text_truncated"}
        assert (await service.http.post("/get_reward?mode=lcb", json=BODY)).status_code == 422


async def test_text_is_taken_with_its_special_tokens_and_nothing_is_added(service: Service) -> None:
    bare, whole = "Human: Hi\n\nAssistant: Hello", QUERIES[0]
    answer = (await service.http.post("/get_reward", json={"query": [bare, whole]})).json()
    assert answer["rewards"][0] == answer["rewards"][1]
    assert service.engine.passes == [[ids_of(bare)]]  # once: they are the same sequence


async def test_padding_of_a_decoded_batch_is_not_scored(service: Service) -> None:
    queries = ["[CLS]ab[SEP]", "[CLS]ab[SEP][PAD][PAD]", "[PAD][PAD][CLS]ab[SEP]"]
    assert (await service.http.post("/get_reward", json={"query": queries})).status_code == 200
    assert service.engine.passes == [[ids_of("ab")]]


async def test_prompts_are_the_groups(service: Service) -> None:
    prompts = ["a", "b", "a", "b"]
    texts = ["a1", "b1", "a22", "b333"]
    answer = (await service.http.post("/get_reward?center=group", json={"query": texts, "prompts": prompts})).json()
    members = calibrated(texts)
    for index in range(4):
        mates = [other for other in range(4) if prompts[other] == prompts[index]]
        expected = (members[:, index] - members[:, mates].mean(axis=1)).mean()
        assert answer["rewards"][index] == pytest.approx(expected, abs=1e-12)
    one = await service.http.post("/get_reward?center=group", json={"query": texts[:1], "prompts": prompts[:1]})
    assert one.status_code == 422


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
        assert (await service.http.post("/score", json={"inputs": [{"text": "a"}]})).status_code == 503
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


@pytest.mark.parametrize("side", ["left", "right"])
async def test_of_an_over_long_query_the_prompt_is_cut_first(tmp_path: Path, side: str) -> None:
    """At the right end, too, where nothing of the response would be left."""
    bundle = make_fake_bundle(tmp_path / side, truncation=side)
    prompt, response = "p" * 90 + "q" * 10, "the response"
    async with serving(bundle.path, FakeEngine()) as service:
        body = {"query": [f"[CLS]{prompt}{response}[SEP]"], "prompts": [prompt]}
        answer = (await service.http.post("/get_reward", json=body)).json()
        kept = 80 - 2 - len(response)
        cut = prompt[-kept:] if side == "left" else prompt[:kept]
        assert service.engine.passes == [[ids_of(cut + response)]]
        assert answer["extra_logs"]["text_truncated"] == [1.0]


@pytest.mark.parametrize("query", ["[CLS]Hi there", "[CLS]Hi there[SEP]", "[PAD][CLS]Hi there[SEP][PAD]"])
async def test_a_query_that_is_its_prompt_has_no_reward(service: Service, query: str) -> None:
    body = {"query": ["Hi there, yes", query], "prompts": ["Hi there"] * 2}
    reply = await service.http.post("/get_reward", json=body)
    assert reply.status_code == 422
    assert reply.json()["error"]["code"] == "empty_text"
    assert "item 1" in reply.json()["error"]["message"]


BAD: dict[str, tuple[str, Any, int, str]] = {
    "no query": ("", {"prompts": []}, 422, "invalid_request"),
    "a bare string": ("", {"query": "Hi"}, 422, "invalid_request"),
    "fewer prompts than queries": ("", {"query": ["a", "b"], "prompts": ["a"]}, 422, "invalid_request"),
    "one blank query": ("", {"query": ["a", " "]}, 422, "empty_text"),
    "misspelt option": ("?moed=lcb", BODY, 422, "invalid_request"),
    "unknown mode": ("?mode=best", BODY, 422, "invalid_request"),
    "negative beta": ("?mode=lcb&beta=-1", BODY, 422, "invalid_request"),
    "beta that is none": ("?beta=nan", BODY, 422, "invalid_request"),
    "unknown ensemble": ("?ensemble=other", BODY, 404, "ensemble_not_found"),
    "reference centring": ("?center=reference", BODY, 422, "invalid_request"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_request(service: Service, name: str) -> None:
    query, body, status, code = BAD[name]
    reply = await service.http.post("/get_reward" + query, json=body)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["code"] == code
    assert "rewards" not in reply.json()


class OneNaN(FakeEngine):
    """Of each pass, the first sequence's first member has no score."""

    async def score(self, version: str, sequences: Any) -> Scores:
        scores = await super().score(version, sequences)
        scores.raw[0, 0] = np.nan
        return scores


async def test_a_score_that_is_no_number_fails_the_request(fake_bundle: Path) -> None:
    """There is no place for one item's error in the answer, and no number is put in its place."""
    async with serving(fake_bundle, OneNaN()) as service:
        native = await service.http.post("/score", json={"inputs": [{"text": "a"}, {"text": "b"}]})
        assert [result["error"] is None for result in native.json()["results"]] == [False, True]
        reply = await service.http.post("/get_reward", json={"query": ["a", "b"]})
    assert reply.status_code == 422
    assert reply.json()["error"]["code"] == "non_finite_score"
    assert "item 0" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "extra",
    [
        {"uuid": 1, "images": [None, None]},
        {"labels": [math.nan, math.inf]},  # as tables without a label have them
        {"labels": [{f"field{n}": n for n in range(100)}, None]},
        {"labels": [0] * 5000},
        {"labels": [[{"role": "user", "content": "a"}] * 5000]},
        {f"field{n}": n for n in range(100)},
        {"labels": ["\ud800", math.nan]},
    ],
    ids=lambda extra: next(iter(extra)),
)
async def test_what_is_not_used_is_ignored(service: Service, extra: dict[str, Any]) -> None:
    reply = await service.http.post("/get_reward", content=json.dumps({**BODY, **extra}))
    assert reply.status_code == 200, reply.text
    refused = await service.http.post("/score", content=json.dumps({"inputs": [{"text": "a"}], **extra}))
    assert refused.status_code in (400, 413, 422)


async def test_no_number_where_one_is_used_is_refused(service: Service) -> None:
    for path, body in (
        ("/get_reward", {"query": [math.nan]}),
        ("/vllm/classify", {"input": [[1, math.nan]]}),
        ("/vllm/rerank", {"query": "a", "documents": ["b"], "top_n": math.nan}),
    ):
        assert (await service.http.post(path, content=json.dumps(body))).status_code == 422
