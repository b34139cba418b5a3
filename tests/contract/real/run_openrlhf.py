"""OpenRLHF's own reward call, unmodified: one rollout for each entry of `urls`, then a batch. Prints what came back.

The generator is a stand-in that always answers with `response_ids`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from types import SimpleNamespace
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor
from transformers import AutoTokenizer


class Generator:
    def __init__(self, response_ids: list[int]) -> None:
        self._response_ids = response_ids

    async def generate(self, *_: Any, **__: Any) -> Any:
        output = SimpleNamespace(token_ids=self._response_ids, text="", finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


def plain(value: Any) -> Any:
    """Tensors as lists."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


async def rollout(url: Any, given: Any, tokenizer: Any) -> dict[str, Any]:
    executor = SingleTurnAgentExecutor(url)
    parameters = SimpleNamespace(max_tokens=16, logprobs=None)
    outputs = [
        await executor.execute(given["prompt"], "label", parameters, 64, tokenizer, Generator(given["response_ids"]))
        for _ in range(given["num_rollouts"])
    ]
    query = tokenizer.decode(outputs[0]["observation_tokens"], skip_special_tokens=False)
    kept = [{name: plain(output[name]) for name in ("reward", "scores", "extra_logs")} for output in outputs]
    return {"query": query, "outputs": kept}


async def main(given: Any) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(given["tokenizer"])
    rollouts = [await rollout(url, given, tokenizer) for url in given["urls"]]
    answer: dict[str, Any] = {"rollouts": rollouts}
    if given["batch"]:
        executor = SingleTurnAgentExecutor(given["urls"][0])
        batch = given["batch"]
        prompts, labels = [given["prompt"]] * len(batch), [None] * len(batch)
        answer["batch"] = await executor._fetch_rewards_via_http(batch, prompts, labels)
    return answer


print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
