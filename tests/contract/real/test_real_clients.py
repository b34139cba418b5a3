"""Other trainers' own code against a real server: the packages as they are released, in an environment of their own.

Each number that a client ends up with is compared with that of the native route for the same text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.decoders import Fuse
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from quorum_client.client import Client
from quorum_model.prompts import PLAIN_TEMPLATE
from tests.contract.real.clients import ROOT, needs_clients, run_client
from tests.integration.server_process import REAL_ENGINE, server
from tests.server.tiny_bundle import VOCABULARY, make_llama_bundle, save_tokenizer

pytestmark = [pytest.mark.slow, needs_clients]

KEY = "a-key-of-the-contract-tests"
PROMPT = [{"role": "user", "content": "What is 2+2?"}]
RESPONSES = ["4", "It is four.", "Five!"]

# The same text in another pass: another order of sums in float32, whose unit is 6e-8, on scores of order 1.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = make_llama_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path
    with server(REAL_ENGINE, bundle, api_keys=f"score:{KEY}") as process:
        yield process.url


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random causal model whose chat template is the ensemble's."""
    folder = tmp_path_factory.mktemp("policy")
    save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.backend_tokenizer.decoder = Fuse()  # or spaces would stand between the characters
    tokenizer.chat_template = PLAIN_TEMPLATE
    tokenizer.eos_token, tokenizer.bos_token = "[SEP]", "[CLS]"
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


def native(url: str, inputs: list[Any], **options: Any) -> list[Any]:
    with Client(url, api_key=KEY) as client:
        return client.score(inputs, **options).results


def with_key(url: str) -> str:
    return url.replace("http://", f"http://x:{KEY}@")


def test_openrlhf(url: str, policy: Path) -> None:
    response_ids = [VOCABULARY[character] for character in "four"] + [2]
    bare = with_key(url) + "/get_reward?mode=lcb&beta=0.5"
    prefixed = with_key(url) + "/openrlhf/get_reward?mode=lcb&beta=0.5"
    adapter = str(ROOT / "clients" / "quorum_client" / "adapters" / "openrlhf.py")
    batch = ["Human: Hi\n\nAssistant: Hello", "Human: Hi\n\nAssistant: Go away"]
    answer = run_client(
        "run_openrlhf.py",
        {
            "tokenizer": str(policy),
            "urls": [[bare, prefixed], bare, adapter],  # several servers, one, and a file
            "prompt": "Human: What is 2+2?\n\nAssistant: ",
            "response_ids": response_ids,
            "num_rollouts": 3,
            "batch": batch,
        },
        QUORUM_URL=url, QUORUM_API_KEY=KEY, QUORUM_MODE="lcb", QUORUM_BETA="0.5",
    )  # fmt: skip
    for rollout in answer["rollouts"]:
        assert rollout["query"].endswith("four[SEP]")
        (expected,) = native(url, [{"text": rollout["query"]}], mode="lcb", beta=0.5)
        for output in rollout["outputs"]:
            assert output["reward"] == pytest.approx([expected.score], abs=TOLERANCE)
            assert output["scores"] == pytest.approx([1 / (1 + np.exp(-expected.score))], abs=TOLERANCE)
            assert output["extra_logs"]["mean"] == pytest.approx([expected.mean], abs=TOLERANCE)
            assert output["extra_logs"]["std"] == pytest.approx([expected.std], abs=TOLERANCE)
    got = [reward for part in answer["batch"] for reward in part["rewards"]]
    expected = [result.score for result in native(url, [{"text": text} for text in batch], mode="lcb", beta=0.5)]
    assert got == pytest.approx(expected, abs=TOLERANCE)


def verl_config(policy: Path, *, engine: str | None = None, function: Any = None, manager: Any = None) -> Any:
    default_manager = {"source": "register", "name": "naive", "module": {"path": None, "name": None}}
    reward = {
        "num_workers": 1,
        "custom_reward_function": function or {"path": None, "name": None},
        "sandbox_fusion": {"url": None},
        "reward_manager": default_manager,
        "reward_model": {"enable": engine is not None, "model_path": str(policy), "rollout": {"name": engine}},
    }
    return {
        "actor_rollout_ref": {"model": {"tokenizer_path": None, "path": str(policy)}},
        "reward": reward | (manager or {}),
    }


def test_verl(url: str, policy: Path) -> None:
    host = with_key(url).removeprefix("http://")
    module = "pkg://quorum_client.adapters.verl"
    options = {"url": url, "api_key": KEY, "mode": "lcb", "beta": 0.5}
    function = {"path": module, "name": "compute_score", "reward_kwargs": options}
    manager = {
        "reward_manager": {
            "source": "importlib",
            "name": "QuorumRewardManager",
            "module": {"path": module, "name": None},
        },
        "reward_kwargs": options,
    }
    lost = {**function, "reward_kwargs": {"url": "http://127.0.0.1:9", "deadline_s": 1.0}}
    configs = [
        {"config": verl_config(policy, engine="vllm"), "address": f"{host}/vllm", "responses": RESPONSES},
        {"config": verl_config(policy, engine="sglang"), "address": f"{host}/sglang", "responses": RESPONSES},
        {"config": verl_config(policy, function=function), "address": None, "responses": RESPONSES},
        {"config": verl_config(policy, manager=manager), "address": None, "responses": RESPONSES},
        {"config": verl_config(policy, function=function), "address": None, "responses": ["fine", " "]},
        {"config": verl_config(policy, manager=manager), "address": None, "responses": ["fine", " "]},
        {"config": verl_config(policy, function=lost), "address": None, "responses": RESPONSES[:1]},
    ]
    answers = run_client("run_verl.py", {"tokenizer": str(policy), "prompt": PROMPT, "configs": configs})
    items = [{"prompt": PROMPT, "response": text} for text in RESPONSES]
    for mode, number in (("mean", 0), ("mean", 1), ("lcb", 2), ("lcb", 3)):
        expected = native(url, items, mode=mode, beta=0.5)
        got = [output["reward_score"] for output in answers[number]]
        assert got == pytest.approx([result.score for result in expected], abs=TOLERANCE)
        if number >= 2:
            infos = [output["reward_extra_info"] for output in answers[number]]
            assert all(set(info) == {"score", "mean", "std", "truncated"} for info in infos)
            assert [info["std"] for info in infos] == pytest.approx([result.std for result in expected], abs=TOLERANCE)
    for failed in answers[4:6]:
        assert failed["error"] == "InvalidRequest", failed
    assert answers[6]["error"] == "DeadlineExceeded"


@pytest.mark.parametrize("kind", ["messages", "text"])
def test_trl(url: str, policy: Path, tmp_path: Path, kind: str) -> None:
    prompts = [PROMPT, [{"role": "user", "content": "Hi"}]] * 4
    if kind == "text":
        prompts = [f"Human: {turns[0]['content']}\n\nAssistant: " for turns in prompts]
    options = {"mode": "lcb", "beta": 0.5, "api_key": KEY}
    answer = run_client(
        "run_trl.py",
        {"model": str(policy), "url": url, "options": options, "prompts": prompts, "output": str(tmp_path)},
    )
    assert answer["error"] is None
    assert len(answer["calls"]) == 2
    for call, log in zip(answer["calls"], answer["logs"], strict=False):
        pairs = list(zip(call["prompts"], call["completions"], strict=True))
        items = [
            {"text": prompt + completion}
            if kind == "text"
            else {"prompt": prompt, "response": completion[0]["content"]}
            for prompt, completion in pairs
        ]
        expected = native(url, items, mode="lcb", beta=0.5)
        assert call["rewards"] == pytest.approx([result.score for result in expected], abs=TOLERANCE)
        assert log["reward"] == pytest.approx(np.mean([result.score for result in expected]), abs=TOLERANCE)
        assert log["rewards/quorum/mean"] == pytest.approx(log["reward"], abs=1e-6)  # float32
        assert log["quorum/std"] == pytest.approx(np.mean([result.std for result in expected]), abs=TOLERANCE)
        assert len({json.dumps(completion) for _, completion in pairs}) > 1  # not one text four times


def test_trl_stops_when_the_server_is_away(policy: Path, tmp_path: Path) -> None:
    answer = run_client(
        "run_trl.py",
        {
            "model": str(policy),
            "url": "http://127.0.0.1:9",
            "options": {"deadline_s": 1.0},
            "prompts": [PROMPT] * 4,
            "output": str(tmp_path),
        },
    )
    assert answer["error"]["error"] == "DeadlineExceeded"
    assert answer["calls"] == []


def test_openai_sdk(url: str) -> None:
    texts = ["Human: Hi\n\nAssistant: Hello", "Human: Hi\n\nAssistant: Go away"]
    ids = [1, 20, 21, 2]
    answer = run_client("run_openai.py", {"url": url, "api_key": KEY, "model": "tiny", "texts": texts, "ids": ids})
    expected = [result.score for result in native(url, [{"text": text} for text in texts])]
    assert np.ravel(answer["float"]) == pytest.approx(expected, abs=TOLERANCE)
    assert np.ravel(answer["base64"]) == pytest.approx(expected, abs=TOLERANCE)
    assert answer["one"] == pytest.approx(expected[:1], abs=TOLERANCE)
    (by_ids,) = native(url, [{"token_ids": ids}])
    assert answer["ids"] == pytest.approx([by_ids.score], abs=TOLERANCE)
    assert answer["vllm"] == answer["sglang"] == [["tiny", "model", "quorum"]]
    assert answer["model"] == "tiny"
    assert answer["tokens"] > 0
    assert answer["unknown model"] == "ensemble_not_found"
    assert answer["blank"] == "empty_text"
