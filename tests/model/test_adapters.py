"""Adapters in PEFT's format: every variant that is taken scores as PEFT scores it, every other is refused."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from quorum_model.adapters import AdapterState, merge_adapter, read_adapter, stack_adapters, write_adapter
from quorum_model.backbone import wrap_backbone
from quorum_model.errors import Unsupported
from quorum_model.model import EnsembleModel
from tests.reference.tiny_models import ARCHITECTURES, make_model, random_member, random_sequences

BERT = ARCHITECTURES[0]
TARGETS = ["query", "value", "intermediate.dense"]


def save_with_peft(folder: Path, seed: int, **options: Any) -> Any:
    """An adapter made and saved by PEFT itself, with random B and head; returns PEFT's model."""
    base = make_model(BERT)
    config = LoraConfig(
        task_type="SEQ_CLS", modules_to_save=["classifier", "pooler"], target_modules=TARGETS, **options
    )
    model = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.25
    model.save_pretrained(str(folder))
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 8},
        {"r": 4, "lora_alpha": 8, "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 8,
            "rank_pattern": {"query": 2},
            "alpha_pattern": {"value": 3, "1.attention.self.query": 5},
        },
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_adapters_made_by_peft_score_as_in_peft(options: dict[str, Any], tmp_path: Path) -> None:
    models = [save_with_peft(tmp_path / f"m{seed}", seed, **options) for seed in range(2)]
    members = [read_adapter(tmp_path / f"m{seed}") for seed in range(2)]
    backbone = wrap_backbone(make_model(BERT))
    ensemble = EnsembleModel(backbone, [m.lora for m in members], [m.head for m in members], "first")
    sequences = random_sequences([5, 12, 3])
    with torch.inference_mode():
        actual = ensemble([sequences]).numpy()
    with torch.no_grad():
        expected = np.array([[float(model(input_ids=torch.tensor([s])).logits) for s in sequences] for model in models])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * expected.std())  # fp32 rounding
    assert np.abs(expected[0] - expected[1]).max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ],
)
def test_variants_that_would_not_be_exact_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_with_peft(tmp_path / "m", 0, r=4)
    path = tmp_path / "m" / "adapter_config.json"
    config = json.loads(path.read_text()) | options
    if options.get("peft_type"):
        config = {"peft_type": options["peft_type"], "task_type": "SEQ_CLS"}
    path.write_text(json.dumps(config))
    with pytest.raises(Unsupported, match=message):
        read_adapter(tmp_path / "m")


def test_an_adapter_for_another_backbone_is_refused() -> None:
    other = next(a for a in ARCHITECTURES if a.name == "roberta")
    member = random_member(wrap_backbone(make_model(other)), rank=2, seed=0)
    backbone = wrap_backbone(make_model(BERT))
    head = random_member(backbone, rank=2, seed=0).head
    with pytest.raises(Unsupported, match="no linear layer of this backbone"):
        EnsembleModel(backbone, [member.lora], [head], "first")


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_merging_equals_the_adapter_beside_the_weights(name: str, tmp_path: Path) -> None:
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    base = make_model(architecture)
    backbone = wrap_backbone(copy.deepcopy(base))
    member = random_member(backbone, rank=4, seed=1)
    write_adapter(tmp_path / "shared", AdapterState(member.lora), base_source="base", alpha=8.0, head_modules=[])
    merge_adapter(backbone.model, read_adapter(tmp_path / "shared"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on Conv1D
        merged_by_peft = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "shared")).merge_and_unload()
    theirs = dict(merged_by_peft.named_parameters())
    for key, parameter in backbone.model.named_parameters():
        torch.testing.assert_close(parameter, theirs[key], rtol=1e-6, atol=1e-6)


def test_a_trained_tensor_that_is_no_part_of_the_head_is_refused() -> None:
    backbone = wrap_backbone(make_model(BERT))
    member = random_member(backbone, rank=2, seed=0)
    head = {**member.head, "bert.embeddings.word_embeddings.weight": torch.ones(97, 32)}
    with pytest.raises(Unsupported, match="word_embeddings"):
        EnsembleModel(backbone, [member.lora], [head], "first")


def test_members_of_different_dtypes_lose_nothing() -> None:
    backbone = wrap_backbone(make_model(BERT))
    members = [random_member(backbone, rank=2, seed=seed, scaling=1 / 3) for seed in range(2)]
    name = sorted(members[0].lora)[0]
    coarse = replace(members[0].lora[name], a=members[0].lora[name].a.bfloat16(), b=members[0].lora[name].b.bfloat16())
    a, b, scaling = stack_adapters([{name: coarse}, members[1].lora], name)
    torch.testing.assert_close(a[1], members[1].lora[name].a.T, rtol=0, atol=0)
    torch.testing.assert_close(b[1], members[1].lora[name].b.T, rtol=0, atol=0)
    assert scaling.tolist() == pytest.approx([1 / 3, 1 / 3], rel=1e-7)


def test_equal_adapters_are_equal_files_in_every_process(tmp_path: Path) -> None:
    """Their hashes are part of a bundle's version; Python's sets have another order in every process."""
    script = (
        "import sys, torch; from pathlib import Path; from quorum_model.adapters import *\n"
        "lora = {f'bert.layer.{i}.query': LoraWeights(torch.ones(2, 3), torch.zeros(4, 2), 0.5) for i in range(6)}\n"
        "write_adapter(Path(sys.argv[1]), AdapterState(lora), base_source='base', alpha=1.0, head_modules=[])\n"
    )
    texts = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", script, str(folder)], check=True, env=environment, timeout=100)
        texts.add((folder / "adapter_config.json").read_bytes())
    assert len(texts) == 1
