"""The adapters of verl and OpenRLHF over a fake server: what is sent, what is answered, what is raised."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quorum_client.adapters import openrlhf, verl
from quorum_client.errors import DeadlineExceeded, InvalidRequest
from quorum_client.results import sigmoid
from tests.clients.adapters.conftest import FakeServer
from tests.integration.server_process import environment

PROMPT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def fresh() -> None:
    openrlhf._client.cache_clear()
    verl._clients.clear()


async def verl_score(solution: str = "Hello", prompt: Any = PROMPT, **options: Any) -> dict[str, float]:
    return await verl.compute_score(
        data_source="d",
        solution_str=solution,
        ground_truth="g",
        extra_info={"prompt": prompt},
        url="http://q",
        **options,
    )


async def test_verl_sends_prompt_and_response(fake: FakeServer) -> None:
    result = await verl_score(mode="lcb", beta=0.5, ensemble="e", api_key="k" * 20, reward_router_address=None)
    assert result == {"score": 6.0, "mean": 6.0, "std": 1.0, "truncated": 0.0}
    assert fake.bodies[0]["inputs"] == [{"prompt": PROMPT, "response": "Hello"}]
    assert (fake.bodies[0]["mode"], fake.bodies[0]["beta"], fake.bodies[0]["ensemble"]) == ("lcb", 0.5, "e")
    assert fake.keys == ["Bearer " + "k" * 20]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("Hi", "Hi"),
        (np.array([{"role": "user", "content": "Hi", "name": None}], dtype=object), PROMPT),  # as out of a table
    ],
)
async def test_verl_prompts(fake: FakeServer, given: Any, sent: Any) -> None:
    await verl_score(prompt=given)
    assert fake.bodies[0]["inputs"][0]["prompt"] == sent


async def test_verl_keeps_its_connections(fake: FakeServer) -> None:
    await asyncio.gather(*(verl_score("a" * n) for n in range(1, 9)))
    (clients,) = verl._clients.values()
    assert len(clients) == 1


@pytest.mark.parametrize("extra_info", [None, {}, {"prompt": None}])
async def test_verl_without_a_prompt(fake: FakeServer, extra_info: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        await verl.compute_score("d", "s", "g", extra_info, url="http://q")
    assert fake.bodies == []


@pytest.mark.parametrize("code", ["empty_text", "scoring_failed"])
async def test_verl_raises(fake: FakeServer, code: str) -> None:
    def edit(results: list[dict[str, Any]]) -> None:
        results[0] = {"error": {"code": code, "message": "why"}}

    fake.edit = edit
    with pytest.raises(InvalidRequest, match="why"):
        await verl_score()
    fake.down = True
    with pytest.raises(DeadlineExceeded):
        await verl_score(deadline_s=0.2)


def test_verls_manager_needs_an_address() -> None:
    with pytest.raises(InvalidRequest, match=r"reward_kwargs\.url"):
        verl.QuorumRewardManager(SimpleNamespace(reward={}), None)


async def test_verl_refuses_misspelt_options(fake: FakeServer) -> None:
    with pytest.raises(TypeError, match="moed"):
        await verl_score(moed="lcb")
    kwargs = {"url": "http://q", "moed": "lcb"}
    with pytest.raises(InvalidRequest, match="has no moed; it has api_key, beta"):
        verl.QuorumRewardManager(SimpleNamespace(reward={"reward_kwargs": kwargs}), None)


class Tokenizer:
    def decode(self, ids: Any, *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(map(chr, ids))


async def test_verls_manager_sends_the_prompt_and_the_valid_part_of_the_response(fake: FakeServer) -> None:
    """Of a sample of several sequences, the last."""
    options = {"url": "http://q", "mode": "lcb", "beta": 0.5, "ensemble": "e", "deadline_s": 5.0}
    manager = verl.QuorumRewardManager(
        SimpleNamespace(reward={"reward_kwargs": options}), Tokenizer(), None, "router", None
    )
    sample = SimpleNamespace(
        batch={
            "responses": np.array([72, 101, 121, 0, 0]),
            "attention_mask": np.array([0, 1, 1, 1, 1, 1, 0, 0]),
        },
        non_tensor_batch={"raw_prompt": np.array(PROMPT, dtype=object)},
    )
    answer = await manager.run_single([None, sample])
    assert fake.bodies[0]["inputs"] == [{"prompt": PROMPT, "response": "Hey"}]
    assert (fake.bodies[0]["mode"], fake.bodies[0]["beta"], fake.bodies[0]["ensemble"]) == ("lcb", 0.5, "e")
    assert answer == {
        "reward_score": 4.0,
        "reward_extra_info": {"score": 4.0, "mean": 4.0, "std": 1.0, "truncated": 0.0},
    }


@pytest.mark.parametrize("code", ["empty_text", "scoring_failed"])
async def test_verls_manager_raises(fake: FakeServer, code: str) -> None:
    def edit(results: list[dict[str, Any]]) -> None:
        results[0] = {"error": {"code": code, "message": "why"}}

    fake.edit = edit
    manager = verl.QuorumRewardManager(SimpleNamespace(reward={"reward_kwargs": {"url": "http://q"}}), Tokenizer())
    batch = {"responses": np.array([72]), "attention_mask": np.array([1, 1])}
    sample = SimpleNamespace(batch=batch, non_tensor_batch={"raw_prompt": PROMPT})
    with pytest.raises(InvalidRequest, match="why"):
        await manager.run_single([sample])


def test_openrlhf_answers_with_tensors(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"URL": "http://q", "MODE": "lcb", "BETA": "0.5", "ENSEMBLE": "e", "API_KEY": "k" * 20}.items():
        monkeypatch.setenv(f"QUORUM_{name}", value)
    answer = openrlhf.reward_func(["<s>ab", "c"], ["<s>a", ""], ["x", None])
    assert answer["rewards"].tolist() == [6.0, 2.0]
    assert answer["scores"].tolist() == pytest.approx([sigmoid(6.0), sigmoid(2.0)])  # float32
    assert {name: values.tolist() for name, values in answer["extra_logs"].items()} == {
        "mean": [6.0, 2.0], "std": [1.0, 1.0], "text_truncated": [0.0, 0.0],
    }  # fmt: skip
    (body,) = fake.bodies
    assert body["inputs"] == [{"text": "<s>ab", "prompt": "<s>a"}, {"text": "c", "prompt": ""}]
    assert (body["mode"], body["beta"], body["ensemble"]) == ("lcb", 0.5, "e")
    assert fake.keys == ["Bearer " + "k" * 20]


@pytest.mark.parametrize(
    ("environment", "match"),
    [
        ({}, "QUORUM_URL"),
        ({"QUORUM_URL": "http://q", "QUORUM_MODE": "best"}, "QUORUM_MODE"),
        ({"QUORUM_URL": "http://q", "QUORUM_BETA": "much"}, "QUORUM_BETA"),
    ],
)
def test_openrlhf_settings(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], match: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidRequest, match=match):
        openrlhf.reward_func(["a"], ["a"], [None])
    assert fake.bodies == []


def test_openrlhf_raises(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORUM_URL", "http://q")
    monkeypatch.setattr(openrlhf, "DEADLINE_S", 0.2)
    fake.down = True
    with pytest.raises(DeadlineExceeded):
        openrlhf.reward_func(["a"], ["a"], [None])


def test_adapters_import_no_framework() -> None:
    script = (
        "import sys; import quorum_client.adapters.trl, quorum_client.adapters.verl, quorum_client.adapters.openrlhf;"
        "print([name for name in ('torch', 'trl', 'verl', 'ray', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("x", [-800.0, -1.0, 0.0, 2.5, 800.0])
def test_sigmoid(x: float) -> None:
    expected = float(np.exp(-np.logaddexp(0.0, -np.longdouble(x))))
    assert sigmoid(x) == pytest.approx(expected, rel=1e-14, abs=1e-300)
