"""The routes of vLLM and SGLang over a fake engine: each input's shape against /score, and what is refused."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.conftest import Service, serving
from tests.server.fake_engine import FakeEngine
from tests.server.tiny_bundle import make_fake_bundle

TEXTS = ["Human: Hi\n\nAssistant: Hello", "Human: Hi\n\nAssistant: Go away", "x"]
IDS = [[1, 20, 21, 2], [1, 30, 2]]
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
IMAGE = {"role": "user", "content": [{"type": "image_url"}]}
RESPONSE = {"role": "assistant", "content": "Hello"}
TEXT_ITEMS = [{"text": text} for text in TEXTS]
ID_ITEMS = [{"token_ids": ids} for ids in IDS]
CHAT_ITEM = {"prompt": CHAT, "response": "Hello"}


async def native(service: Service, inputs: list[Any], **options: Any) -> list[float]:
    reply = await service.http.post("/score", json={"inputs": inputs, **options})
    assert reply.status_code == 200, reply.text
    return [result["score"] for result in reply.json()["results"]]


def sigmoid(scores: list[float]) -> list[float]:
    return [1 / (1 + math.exp(-score)) for score in scores]


VLLM_INPUTS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "text": ({"input": TEXTS[0]}, TEXT_ITEMS[:1]),
    "texts": ({"input": TEXTS}, TEXT_ITEMS),
    "token ids": ({"input": IDS[0]}, ID_ITEMS[:1]),
    "lists of token ids": ({"input": IDS}, ID_ITEMS),
    "messages": ({"messages": [*CHAT, RESPONSE]}, [CHAT_ITEM]),
    "messages in parts": (
        {
            "messages": [
                *CHAT,
                {**RESPONSE, "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}, "!"]},
            ],
            "add_generation_prompt": False,
            "continue_final_message": False,
            "chat_template_kwargs": {},
        },
        [CHAT_ITEM | {"response": "Hel\nlo\n!"}],
    ),
    "a developer's turn, and fields that are empty": (
        {
            "messages": [
                {"role": "developer", "content": "Be kind.", "tools": None},
                CHAT[1],
                {**RESPONSE, "tool_calls": [], "reasoning": None, "name": "x"},
            ]
        },
        [CHAT_ITEM],
    ),
}


@pytest.mark.parametrize("name", VLLM_INPUTS)
async def test_vllm_classify_and_pooling(service: Service, name: str) -> None:
    body, inputs = VLLM_INPUTS[name]
    expected = await native(service, inputs, mode="lcb", beta=0.5)
    for raw in ({"use_activation": False}, {"activation": False}):  # verl's newer and older releases
        reply = await service.http.post("/vllm/classify?mode=lcb&beta=0.5", json={**body, **raw})
        assert reply.status_code == 200, reply.text
        data = reply.json()["data"]
        assert [entry["probs"] for entry in data] == [[score] for score in expected]
        assert [(entry["index"], entry["num_classes"]) for entry in data] == [(i, 1) for i in range(len(expected))]
    usage = reply.json()["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] > 0
    assert reply.headers["x-quorum-ensemble"].startswith("tiny@")
    for activated in ({}, {"use_activation": True}, {"use_activation": None}):
        data = (await service.http.post("/vllm/classify?mode=lcb&beta=0.5", json={**body, **activated})).json()["data"]
        assert [entry["probs"][0] for entry in data] == pytest.approx(sigmoid(expected))
        data = (await service.http.post("/vllm/pooling?mode=lcb&beta=0.5", json={**body, **activated})).json()["data"]
        assert [entry["data"][0] for entry in data] == pytest.approx(sigmoid(expected))


async def test_vllm_pooling_in_base64(service: Service) -> None:
    (expected,) = await native(service, TEXT_ITEMS[:1])
    body = {"input": TEXTS[0], "task": "classify", "use_activation": False, "encoding_format": None}
    (entry,) = (await service.http.post("/vllm/pooling", json=body)).json()["data"]
    assert entry["data"] == [expected]
    body = body | {"encoding_format": "base64"}
    (entry,) = (await service.http.post("/vllm/pooling", json=body)).json()["data"]
    assert np.frombuffer(base64.b64decode(entry["data"]), "<f4") == [np.float32(expected)]


PAIR_NAMES = [("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2")]


@pytest.mark.parametrize("path", ["/vllm/score", "/vllm/v1/score"])
@pytest.mark.parametrize("names", PAIR_NAMES)
async def test_vllm_score(service: Service, path: str, names: tuple[str, str]) -> None:
    first, second = names
    for prompts, responses in (("Hi", "Yes"), ("Hi", ["Yes", "No"]), (["Hi", "Ho"], ["Yes", "No"]), (["Hi"], ["Yes"])):
        body = {first: prompts, second: responses, "use_activation": False}
        reply = await service.http.post(path, json=body)
        assert reply.status_code == 200, reply.text
        listed = [responses] if isinstance(responses, str) else responses
        all_prompts = prompts if isinstance(prompts, list) else [prompts] * len(listed)
        items = [{"prompt": p, "response": r} for p, r in zip(all_prompts, listed, strict=True)]
        expected = await native(service, items)
        assert [entry["score"] for entry in reply.json()["data"]] == expected
        as_parts = [{"content": [{"type": "text", "text": one}]} for one in listed]
        reply = await service.http.post(path, json={**body, second: as_parts})
        assert [entry["score"] for entry in reply.json()["data"]] == expected


@pytest.mark.parametrize("path", ["/vllm/rerank", "/vllm/v1/rerank", "/vllm/v2/rerank"])
async def test_vllm_rerank(service: Service, path: str) -> None:
    documents = ["a", {"text": "zz"}, "Hello there", "no"]
    texts = ["a", "zz", "Hello there", "no"]
    expected = await native(service, [{"prompt": "Hi", "response": text} for text in texts])
    body = {"query": "Hi", "documents": documents, "use_activation": False}
    results = (await service.http.post(path, json=body)).json()["results"]
    order = sorted(range(4), key=lambda index: -expected[index])
    assert [entry["index"] for entry in results] == order
    assert [entry["relevance_score"] for entry in results] == [expected[index] for index in order]
    assert [entry["document"]["text"] for entry in results] == [texts[index] for index in order]
    best = (await service.http.post(path, json={**body, "top_n": 2})).json()["results"]
    assert best == results[:2]
    for documents in ("zz", {"text": "zz"}, {"content": [{"type": "text", "text": "zz"}]}):
        query = {"content": [{"type": "text", "text": "Hi"}]}
        (only,) = (await service.http.post(path, json={**body, "query": query, "documents": documents})).json()[
            "results"
        ]
        assert (only["index"], only["relevance_score"], only["document"]["text"]) == (0, expected[1], "zz")


async def test_large_scores_keep_their_order_under_the_logistic_function(tmp_path: Path) -> None:
    """The fake engine's scores reach 97; above 37 the function is 1 in float64, and ties keep the request's order."""
    async with serving(make_fake_bundle(tmp_path / "one", num_members=1).path, FakeEngine()) as service:
        texts = [chr(97 + index) for index in range(20)]
        scores = await native(service, [{"prompt": "Hi", "response": text} for text in texts])
        assert sorted(scores)[-2] > 40  # two at least that cannot be told apart
        reply = await service.http.post("/vllm/rerank", json={"query": "Hi", "documents": texts})
        assert [one["index"] for one in reply.json()["results"]] == sorted(range(20), key=lambda i: -scores[i])
        reply = await service.http.post("/tei/rerank", json={"query": "Hi", "texts": texts})
        assert [one["index"] for one in reply.json()] == sorted(range(20), key=lambda i: -scores[i])


SGLANG_INPUTS: dict[str, tuple[dict[str, Any], list[Any], bool]] = {
    "text": ({"text": TEXTS[0]}, TEXT_ITEMS[:1], False),
    "texts": ({"text": TEXTS}, TEXT_ITEMS, True),
    "one text in a list": ({"text": TEXTS[:1]}, TEXT_ITEMS[:1], True),
    "token ids": ({"input_ids": IDS[0]}, ID_ITEMS[:1], False),
    "lists of token ids": ({"input_ids": IDS}, ID_ITEMS, True),
    "a dialogue": ({"conv": [*CHAT, RESPONSE]}, [CHAT_ITEM], False),
    "a dialogue in parts": (
        {"conv": [*CHAT, {**RESPONSE, "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]},
        [CHAT_ITEM | {"response": "Hel lo"}],
        False,
    ),
    "dialogues": (
        {"conv": [[*CHAT, RESPONSE], [CHAT[1], RESPONSE]]},
        [CHAT_ITEM, {"prompt": "Hi", "response": "Hello"}],
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SGLANG_INPUTS)
async def test_sglang_classify(service: Service, name: str) -> None:
    body, inputs, is_list = SGLANG_INPUTS[name]
    expected = await native(service, inputs, mode="min")
    reply = await service.http.post("/sglang/classify?mode=min", json=body)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert isinstance(answer, list) is is_list
    entries = answer if is_list else [answer]
    assert [entry["embedding"] for entry in entries] == [[score] for score in expected]
    assert all(entry["meta_info"]["prompt_tokens"] > 0 for entry in entries)
    assert entries[0]["meta_info"]["weight_version"] == service.runtime.registry.get(None).version


@pytest.mark.parametrize("name", ["text", "texts", "token ids", "lists of token ids"])
async def test_sglang_embeddings(service: Service, name: str) -> None:
    body, inputs = VLLM_INPUTS[name]
    expected = await native(service, inputs)
    answer = (await service.http.post("/sglang/v1/embeddings", json={"model": "tiny", **body})).json()
    assert [entry["embedding"] for entry in answer["data"]] == [[score] for score in expected]
    assert answer["model"] == "tiny"
    coded = await service.http.post("/sglang/v1/embeddings", json={**body, "encoding_format": "base64"})
    numbers = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4")[0] for entry in coded.json()["data"]]
    assert numbers == [np.float32(score) for score in expected]


@pytest.mark.parametrize("prefix", ["/vllm", "/sglang"])
async def test_models(service: Service, prefix: str) -> None:
    (model,) = (await service.http.get(f"{prefix}/v1/models")).json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("tiny", "model", 80)


@pytest.mark.parametrize(
    ("model", "status"),
    [
        (None, 200),
        ("tiny", 200),
        ("tiny@000000000000", 404),
        ("other", 404),
        ("/models/reward", 200),  # a path or hub id of the client's own
        ("org/reward", 200),
    ],
)
async def test_model(service: Service, model: str | None, status: int) -> None:
    reply = await service.http.post("/vllm/classify", json={"input": "a", "model": model})
    assert reply.status_code == status
    named = await service.http.post("/vllm/classify?ensemble=tiny", json={"input": "a", "model": model})
    assert named.status_code == 200  # the address goes before the body


# Each would be another text or number.
PAIR_OPTIONS = {
    "max_tokens_per_query": 5, "max_tokens_per_doc": 5, "instruction": "x", "chat_template_kwargs": {"a": 1},
    "normalize": False, "truncate_prompt_tokens": 0,
}  # fmt: skip
CHAT_OPTIONS = {
    "add_generation_prompt": True, "continue_final_message": True, "chat_template_kwargs": {"a": 1}, "normalize": True,
    "truncate_prompt_tokens": -2,
}  # fmt: skip

BAD: dict[str, tuple[str, Any, int]] = {
    "vLLM: neither input nor messages": ("/vllm/classify", {}, 422),
    "vLLM: both": ("/vllm/classify", {"input": "a", "messages": [*CHAT, RESPONSE]}, 422),
    **{
        f"vLLM: {name} {value}": (path, {**given, name: value}, 422)
        for path, given, options in (
            ("/vllm/score", {"queries": "a", "documents": "b"}, PAIR_OPTIONS),
            ("/vllm/rerank", {"query": "a", "documents": ["b"]}, PAIR_OPTIONS),
            ("/vllm/classify", {"messages": [*CHAT, RESPONSE]}, CHAT_OPTIONS),
            ("/vllm/pooling", {"input": "a"}, CHAT_OPTIONS),
        )
        for name, value in options.items()
    },
    **{
        f"vLLM: a turn with {name}": ("/vllm/classify", {"messages": [*CHAT, {**RESPONSE, name: value}]}, 422)
        for name, value in {"tool_calls": [{"id": "1"}], "reasoning": "why", "reasoning_content": "why"}.items()
    },
    "SGLang: a turn with tool_calls": ("/sglang/classify", {"conv": [*CHAT, {**RESPONSE, "tool_calls": [1]}]}, 422),
    "vLLM: an image to rank": ("/vllm/rerank", {"query": "a", "documents": {"content": [{"type": "image_url"}]}}, 422),
    "vLLM: no texts": ("/vllm/classify", {"input": []}, 422),
    "vLLM: a blank text": ("/vllm/classify", {"input": " "}, 422),
    "vLLM: texts and ids": ("/vllm/classify", {"input": ["a", [1]]}, 422),
    "vLLM: messages that end with the user's": ("/vllm/classify", {"messages": CHAT}, 422),
    "vLLM: messages of a response alone": ("/vllm/classify", {"messages": [RESPONSE]}, 422),
    "vLLM: an image": ("/vllm/classify", {"messages": [IMAGE, RESPONSE]}, 422),
    "vLLM: another length than the ensemble's": ("/vllm/classify", {"input": "a", "truncate_prompt_tokens": 7}, 422),
    "vLLM: a score for each token": ("/vllm/pooling", {"input": "a", "task": "token_classify"}, 422),
    "vLLM: half precision": ("/vllm/pooling", {"input": "a", "embed_dtype": "float16"}, 422),
    "vLLM: numbers that do not match": ("/vllm/score", {"queries": ["a", "b", "c"], "documents": ["d", "e"]}, 422),
    "vLLM: no documents": ("/vllm/score", {"queries": "a", "documents": []}, 422),
    "vLLM: nothing to rank": ("/vllm/rerank", {"query": "a", "documents": []}, 422),
    "vLLM: misspelt option": ("/vllm/classify?betta=1", {"input": "a"}, 422),
    "vLLM: not JSON": ("/vllm/classify", None, 400),
    "SGLang: text and ids": ("/sglang/classify", {"text": "a", "input_ids": [1]}, 422),
    "SGLang: nothing": ("/sglang/classify", {}, 422),
    "SGLang: no ids": ("/sglang/classify", {"input_ids": []}, 422),
    "SGLang: no dialogues": ("/sglang/classify", {"conv": []}, 422),
    "SGLang: unknown model": ("/sglang/v1/embeddings", {"model": "other", "input": "a"}, 404),
}  # fmt: skip


async def test_one_blank_text_fails_the_request_and_is_named(service: Service) -> None:
    for path, body in (
        ("/vllm/classify", {"input": ["a", " "]}),
        ("/sglang/v1/embeddings", {"input": ["a", " "]}),
        ("/vllm/rerank", {"query": "a", "documents": ["b", " "]}),
    ):
        reply = await service.http.post(path, json=body)
        assert reply.status_code == 422
        assert reply.json()["error"]["code"] == "empty_text"
        assert "item 1" in reply.json()["error"]["message"]


@pytest.mark.parametrize("name", BAD)
async def test_bad_request(service: Service, name: str) -> None:
    path, body, status = BAD[name]
    reply = await service.http.post(path, content=b"{" if body is None else None, json=body)
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"error"}
    assert service.engine.passes == []


async def test_truncation_side(service: Service) -> None:
    text = "a" * 100 + "b" * 100  # of which 80 tokens are taken
    for side in ("left", "right"):
        expected = await native(service, [{"text": text}], truncate=side)
        for length in (None, -1, 80, 4096):
            body = {"input": text, "truncation_side": side, "truncate_prompt_tokens": length, "use_activation": False}
            reply = await service.http.post("/vllm/classify", json=body)
            assert reply.json()["data"][0]["probs"] == expected
