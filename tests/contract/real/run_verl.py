"""verl's reward loop worker, unmodified, under each of `configs`. Prints what it makes of each response.

The worker is verl's class as it is, without Ray around it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.protocol import DataProto


def objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def make_data(tokenizer: Any, prompt: list[Any], responses: list[str]) -> DataProto:
    """Responses of unequal length, padded on the right, as verl holds them."""
    ids = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in responses]
    width = max(map(len, ids))
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids])
    mask = torch.tensor([[1, 1] + [1] * len(row) + [0] * (width - len(row)) for row in ids])
    num = len(responses)
    batch = {"prompts": torch.tensor([[1, 20]] * num), "responses": padded, "attention_mask": mask}
    return DataProto(
        batch=TensorDict(batch, batch_size=num),
        non_tensor_batch={
            "raw_prompt": objects([prompt] * num),
            "data_source": objects(["x"] * num),
            "reward_model": objects([{"ground_truth": ""}] * num),
            "extra_info": objects([{"prompt": prompt} for _ in range(num)]),
        },
        meta_info={},
    )


async def score(config: Any, address: str | None, data: DataProto) -> Any:
    try:
        outputs = await RewardLoopWorker(OmegaConf.create(config), address).compute_score_batch(data)
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    return outputs


async def main(given: Any) -> list[Any]:
    tokenizer = AutoTokenizer.from_pretrained(given["tokenizer"])
    return [
        await score(one["config"], one["address"], make_data(tokenizer, given["prompt"], one["responses"]))
        for one in given["configs"]
    ]


print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
