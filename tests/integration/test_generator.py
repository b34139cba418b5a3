"""The generator's client and `quorum best-of-n` against a real vLLM server, the policy's own model as the oracle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from quorum_client.cli import app
from quorum_client.errors import GeneratorError, GeneratorRefused
from quorum_client.generation import Generation, Generator, SamplingOptions, load_adapter, unload_adapter
from quorum_model.benchmark.random_ensemble import draw_ensemble
from tests.integration.generator_process import MAX_LENGTH, generator, generator_python, save_policy
from tests.integration.server_process import REAL_ENGINE, server
from tests.trainer.conftest import save_backbone

PYTHON = generator_python()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="no vLLM here: make generator-env, or set QUORUM_GENERATOR_PYTHON"),
]
SAMPLING = SamplingOptions(n=4, max_tokens=12, seed=3, token_ids=True, logprobs=True)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy."""
    folder = tmp_path_factory.mktemp("policy")
    save_policy(folder)
    return folder


@pytest.fixture(scope="module")
def url(policy: Path) -> Iterator[str]:
    """One vLLM server for all tests here."""
    assert PYTHON is not None
    with generator(policy, PYTHON) as address:
        yield address


def ask(url: str, work: Callable[[Generator], Awaitable[object]]) -> object:
    async def go() -> object:
        async with Generator(url) as client:
            return await work(client)

    return asyncio.run(go())


def test_ids_and_logprobs_are_the_models(url: str, policy: Path) -> None:
    answer = ask(url, lambda client: client.chat("hello", model="base", sampling=SAMPLING))
    assert isinstance(answer, Generation)
    tokenizer, model = AutoTokenizer.from_pretrained(policy), AutoModelForCausalLM.from_pretrained(policy)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_dict=False
    )
    assert answer.prompt_token_ids == tuple(prompt)
    assert len(answer.completions) == 4
    for one in answer.completions:
        assert one.token_ids is not None
        # vLLM leaves out a last character that is not whole.
        assert one.text == tokenizer.decode(one.token_ids, skip_special_tokens=True).removesuffix("\ufffd")
        with torch.no_grad():
            logits = model(torch.tensor([prompt + list(one.token_ids)])).logits[0]
        expected = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        own = expected[torch.arange(len(one.token_ids)), torch.tensor(one.token_ids)]
        # Both in float32: sums of 64 and softmax over 300 in another order.
        assert torch.tensor(one.logprobs) == pytest.approx(own, abs=1e-5)


def test_a_seed_repeats_and_ids_are_as_good_as_text(url: str) -> None:
    async def work(client: Generator) -> list[Generation]:
        first = await client.chat("hello", model="base", sampling=SAMPLING)
        assert first.prompt_token_ids is not None
        again = await client.chat("hello", model="base", sampling=SAMPLING)
        return [first, again, await client.complete(first.prompt_token_ids, model="base", sampling=SAMPLING)]

    answers = ask(url, work)
    assert isinstance(answers, list)
    ids = [[one.token_ids for one in answer.completions] for answer in answers]
    assert ids[0] == ids[1] == ids[2]


def test_what_vllm_refuses(url: str) -> None:
    with pytest.raises(GeneratorRefused, match="maximum context length"):
        ask(url, lambda client: client.chat("x " * MAX_LENGTH, model="base", sampling=SAMPLING))
    with pytest.raises(GeneratorError, match="does not exist"):
        ask(url, lambda client: client.chat("hello", model="nobody", sampling=SAMPLING))


def test_adapters_come_and_go(url: str, policy: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    options = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(policy), options).save_pretrained(tmp_path / "adapter")

    async def work(client: Generator) -> None:
        await load_adapter(client, "policy-1", tmp_path / "adapter")
        assert await client.models() == ["base", "policy-1"]
        base, adapted = [
            (await client.chat("hello", model=name, sampling=SAMPLING)).completions[0] for name in ("base", "policy-1")
        ]
        assert base.logprobs != adapted.logprobs
        with pytest.raises(GeneratorRefused, match="already been loaded"):
            await load_adapter(client, "policy-1", tmp_path / "adapter")
        with pytest.raises(GeneratorError, match="No adapter found"):
            await load_adapter(client, "policy-2", tmp_path / "gone")
        await unload_adapter(client, "policy-1")
        assert await client.models() == ["base"]
        with pytest.raises(GeneratorError, match="cannot be found"):
            await unload_adapter(client, "policy-1")

    ask(url, work)


def test_best_of_n_with_real_servers(url: str, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"tell me of {index}"}) + "\n" for index in range(6)))
    with server(REAL_ENGINE, "default") as ours:
        args = [
            "best-of-n", "--prompts", str(prompts), "--url", ours.url, "--generator-url", url, "--n", "8",
            "--max-tokens", "16", "--out", str(out), "--json",
        ]  # fmt: skip
        result = CliRunner().invoke(app, args)
        assert result.exit_code == 0, result.output
        again = CliRunner().invoke(app, args)
    assert json.loads(again.stdout.splitlines()[-1])["kept"] == 6
    records = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert len(records) == 6
    for record in records:
        scored = [one["score"] for one in record["candidates"] if one["score"] is not None]
        assert len(record["candidates"]) == 8
        assert record["candidates"][record["pick"]]["score"] == max(scored)
        assert record["generation"]["usage"]["completion_tokens"] > 0


def test_the_gateway_returns_the_best_of_its_candidates(url: str, tmp_path: Path) -> None:
    folder = save_backbone("llama", tmp_path / "backbone")
    ensemble = draw_ensemble(folder, kind="lora", members=3, rank=4, layers="all", max_length=64)
    with server(REAL_ENGINE, ensemble.write(tmp_path / "own").path, generator_url=url) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        answer: Any = client.chat.completions.create(
            model="base", messages=[{"role": "user", "content": "how one two three"}], max_tokens=12, seed=3, n=2,
            extra_body={"quorum": {"n": 6, "mode": "lcb", "return_candidates": True}},
        )  # fmt: skip
        candidates = answer.quorum["candidates"]
        assert len(candidates) == 6
        best = sorted((one for one in candidates if "error" not in one), key=lambda one: -one["score"])[:2]
        assert [choice.message.content for choice in answer.choices] == [one["text"] for one in best]
        assert answer.usage.completion_tokens > 12 * 2  # of all six
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="none", messages=[{"role": "user", "content": "x"}])
