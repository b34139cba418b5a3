"""TRL's GRPOTrainer, unmodified, for a few steps on a tiny model. Prints what was rewarded, and what was logged."""

from __future__ import annotations

import json
import sys
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from quorum_client.adapters.trl import RemoteReward

given = json.loads(sys.argv[1])


class Recorded(RemoteReward):
    """Keeps what it is asked and what it answers."""

    calls: list[dict[str, Any]] = []  # noqa: RUF012

    async def __call__(self, prompts: Any, completions: Any, **options: Any) -> list[float]:
        rewards = await super().__call__(prompts, completions, **options)
        self.calls.append({"prompts": list(prompts), "completions": list(completions), "rewards": rewards})
        return rewards


trainer = GRPOTrainer(
    model=given["model"],
    reward_funcs=Recorded(given["url"], **given["options"]),
    args=GRPOConfig(
        output_dir=given["output"],
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        generation_kwargs={"min_new_tokens": 4},
        max_steps=2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        seed=1,
        model_init_kwargs={"dtype": "float32"},
    ),
    train_dataset=Dataset.from_dict({"prompt": given["prompts"]}),
    processing_class=AutoTokenizer.from_pretrained(given["model"]),
)
try:
    trainer.train()
    error = None
except Exception as caught:
    error = {"error": type(caught).__name__, "message": str(caught)}
logs = [{name: value for name, value in row.items() if isinstance(value, float)} for row in trainer.state.log_history]
print(json.dumps({"calls": Recorded.calls, "logs": logs, "error": error}))
