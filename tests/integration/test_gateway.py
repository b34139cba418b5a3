"""The gateway as it runs: `quorum serve --generator-url` in a process of its own, a real model, OpenAI's own client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from quorum_model.benchmark.random_ensemble import draw_ensemble
from tests.clients.generation.fake_generator import FakeGenerator, refusal, serve
from tests.integration.server_process import REAL_ENGINE, server
from tests.trainer.conftest import save_backbone

ASK: Any = [{"role": "user", "content": "how one two three"}]


def rank(url: str, candidates: list[str]) -> dict[str, Any]:
    reply = httpx.post(f"{url}/rank", json={"prompt": ASK, "candidates": candidates}, timeout=60)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = save_backbone("llama", tmp_path / "backbone")
    return (
        draw_ensemble(folder, kind="lora", members=3, rank=4, layers="all", max_length=64).write(tmp_path / "own").path
    )


def test_openais_client_gets_the_best_of_n(bundle: Path) -> None:
    with serve(FakeGenerator()) as fake, server(REAL_ENGINE, bundle, generator_url=fake.url) as running:
        texts = [f"{ASK[0]['content']} #{seed}" for seed in range(8)]
        expected = rank(running.url, texts)
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        whole = client.chat.completions.create(model="base", messages=ASK)
        assert whole.choices[0].message.content == texts[expected["best"]]
        stream = client.chat.completions.create(model="base", messages=ASK, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == texts[expected["best"]]
        fake.behaviour.failures[:] = [refusal(400, "too long")]
        with pytest.raises(openai.UnprocessableEntityError, match="too long"):
            client.chat.completions.create(model="base", messages=ASK)
