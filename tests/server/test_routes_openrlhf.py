"""OpenRLHF's route over a fake engine: numbers worked out by hand, and what its clients would break on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorum_server.engine.messages import Scores
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


async def test_bos_and_eos_stand_once_whether_or_not_the_text_has_them(service: Service) -> None:
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
