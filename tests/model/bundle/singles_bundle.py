"""Bundles of kind `singles`: K whole tiny models, their bodies and heads written apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from quorum_client.types import ScoreItem
from quorum_model.backbone import wrap_backbone
from quorum_model.bundle.golden import GoldenItem, write_golden
from quorum_model.bundle.manifest import Manifest, MemberCalibration, MemberEntry
from quorum_model.bundle.parts import HEADS_NAME, body_folder, save_body, save_heads
from quorum_model.bundle.read import Bundle
from quorum_model.bundle.write import write_bundle
from quorum_model.model import EnsembleModel
from quorum_model.prompts import PromptEncoder, default_prompt_format
from quorum_model.singles import SinglesModel
from quorum_model.sources import reference_to
from tests.reference.tiny_models import Architecture, make_model, random_member
from tests.reference.tiny_tokenizers import bert_like, llama_like


def single_models(architecture: Architecture, num_members: int) -> list[Any]:
    """Transformers' own models, random from body to head."""
    models = []
    for k in range(num_members):
        model = make_model(architecture, seed=20 + k)
        head = random_member(wrap_backbone(make_model(architecture)), rank=1, seed=k).head
        model.load_state_dict(head, strict=False)
        models.append(model)
    return models


def fold_singles(models: list[Any], pooling: Any) -> tuple[SinglesModel, list[dict[str, torch.Tensor]]]:
    """Ours, of Transformers' models (which are taken apart), and the heads."""
    members, heads = [], []
    for model in models:
        backbone = wrap_backbone(model)
        names = {name: backbone.head.public_name(name) for name, _ in backbone.head.named_parameters()}
        head = {names[name]: parameter.detach().clone() for name, parameter in backbone.head.named_parameters()}
        members.append(EnsembleModel(backbone, None, [head], pooling))
        heads.append(head)
    return SinglesModel(members).eval(), heads


def make_singles_bundle(
    target: Path, architecture: Architecture, pooling: Any, num_members: int = 2, **changes: Any
) -> Bundle:
    """`single_models` as a bundle. changes: fields of the manifest."""
    model, heads = fold_singles(single_models(architecture, num_members), pooling)
    is_causal = model.models[0].backbone.is_causal
    tokenizer = llama_like() if is_causal else bert_like()
    prompt_format, bos_ids, eos_ids = default_prompt_format(tokenizer, is_causal=is_causal)
    encoder = PromptEncoder(
        tokenizer, template=prompt_format.template, bos_ids=bos_ids, eos_ids=eos_ids, max_length=70
    )  # fmt: skip
    ids = encoder.encode(ScoreItem(prompt="hello", response="how are you ?")).ids
    names = [f"m{k:02d}" for k in range(num_members)]
    first = target.with_name(f"{target.name}-first")
    save_body(first, model.models[0].backbone)
    tokenizer.save_pretrained(str(first))

    def write_files(root: Path) -> None:
        for name, member in zip(names, model.models, strict=True):
            save_body(root / body_folder(name), member.backbone)
        tokenizer.save_pretrained(str(root / body_folder(names[0])))
        save_heads(root / HEADS_NAME, dict(zip(names, heads, strict=True)))
        with torch.inference_mode():
            scores = model([[ids]])[:, 0].tolist()
        write_golden(root, [GoldenItem(token_ids=ids, scores=scores)])

    values: dict[str, Any] = {
        "name": "whole-ones",
        "kind": "singles",
        "backbone": reference_to(f"bundle:{body_folder(names[0])}", first),
        "pooling": pooling,
        "max_length": 70,
        "bos_ids": bos_ids,
        "eos_ids": eos_ids,
        "prompt_format": prompt_format,
        "members": [
            MemberEntry(
                name=name,
                head=HEADS_NAME,
                backbone=body_folder(name),
                calibration=MemberCalibration(mean=0.3 * k, scale=1.0 + k),
                seed=k,
            )
            for k, name in enumerate(names)
        ],
    }
    return write_bundle(target, Manifest(**(values | changes)), write_files)
