"""A tiny backbone with its tokenizer on disk, and a file of toy preferences that can be learned."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quorum_trainer.config import TrainConfig
from tests.reference.tiny_models import ARCHITECTURES, make_model
from tests.reference.tiny_tokenizers import bert_like, llama_like

FRUIT = ["one", "two", "three", "four", "five", "six", "seven"]


def save_backbone(name: str, folder: Path) -> Path:
    """A tiny random model of an architecture (no head), and a tokenizer that fits it, as a hub's folder."""
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    make_model(architecture).base_model.save_pretrained(folder)
    # RoBERTa's pad id is 1, and to Transformers a token of that id has no position.
    encoder = bert_like(first=("[CLS]", "[PAD]", "[SEP]")) if name == "roberta" else bert_like()
    (llama_like() if name == "llama" else encoder).save_pretrained(folder)
    return folder


def write_pairs(path: Path, num_pairs: int = 60, seed: int = 0) -> Path:
    """The chosen response says yes, the rejected one says no: a rule that a tiny model can learn."""
    draw = random.Random(seed)
    lines = []
    for index in range(num_pairs):
        words = " ".join(draw.choices(FRUIT, k=draw.randint(2, 6)))
        row = {"prompt": f"how {words} {index % 10}", "chosen": f"yes {words}", "rejected": f"no {words}"}
        lines.append(json.dumps({**row, "margin": 0.1 * (index % 3)}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., TrainConfig]:
    """A config on a tiny backbone; keywords change it."""

    def make(backbone: str = "bert", **changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "name": "toy",
            "kind": "lora",
            "backbone": str(save_backbone(backbone, tmp_path / f"backbone-{backbone}")),
            "members": 3,
            "max_length": 40,
            "data": [{"name": "toy", "path": str(write_pairs(tmp_path / "pairs.jsonl")), "held_out": 0.3}],
            "phase2": {"epochs": 2, "batch_pairs": 8, "lr": 5e-3, "lora": {"rank": 4, "alpha": 8}},
            "trackers": [],
        }
        return TrainConfig.model_validate(values | changes)

    return make
