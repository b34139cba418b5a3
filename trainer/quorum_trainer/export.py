"""From a trained ensemble to a bundle on disk.

    TrainedEnsemble, Measured  --export_bundle-->  bundle folder, verified by reading it back

Knows nothing of how the members were trained.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quorum_client.types import ScoreItem
from quorum_model.adapters import AdapterState, write_adapter
from quorum_model.backbone import load_backbone
from quorum_model.bundle.golden import GoldenItem, write_golden
from quorum_model.bundle.manifest import BackboneRef, Manifest, MemberEntry, TrainingData
from quorum_model.bundle.parts import HEADS_NAME, body_folder, save_body, save_heads
from quorum_model.bundle.read import Bundle
from quorum_model.bundle.write import write_bundle
from quorum_model.model import EnsembleModel
from quorum_model.prompts import PromptEncoder
from quorum_model.singles import SinglesModel
from quorum_model.sources import BUNDLE_SCHEME, load_tokenizer, reference_to
from quorum_trainer.config import TrainConfig
from quorum_trainer.measure import Measured
from quorum_trainer.prepare import Base
from quorum_trainer.training.ensemble import TrainedEnsemble

# The self-test's inputs: ours, of several lengths, none from any data set.
_GOLDEN_PAIRS = (
    ("What is the capital of France?", "Paris."),
    ("What is the capital of France?", "I will not tell you, and you should be ashamed of asking."),
    ("How do I boil an egg?", "Put it in boiling water for eight minutes, then cool it under the tap."),
    ("Write a short poem about rain.", "Rain on the roof, rain on the street,\nrain on the shoes on everyone's feet."),
    ("My neighbour is loud at night. What can I do?", "Talk to them first, calmly and by day. If nothing changes, "
     "note the times and ask your landlord or the council to mediate."),
)  # fmt: skip
_SHARED_ADAPTER = "shared_adapter"
_BODY = "backbone"


@dataclass(frozen=True, slots=True)
class _Backbone:
    """reference: as the manifest has it. bodies: folders that go into the bundle, by their name there."""

    reference: BackboneRef
    bodies: dict[str, Path]


def export_bundle(
    target: Path,
    config: TrainConfig,
    trained: TrainedEnsemble,
    measured: Measured,
    *,
    base: Base,
    training_data: list[TrainingData],
    metrics: dict[str, Any],
) -> Bundle:
    """Write the bundle of a training run.

    Args:
        target: must not exist.
        config: of the run.
        trained: its result.
        measured: its calibration on held-out pairs.
        base: what it was trained upon.
        training_data: what it was trained on.
        metrics: for the manifest.
    """
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".backbone-") as staging:
        backbone = _stage_backbone(Path(staging), config, trained, base)
        manifest = Manifest(
            name=config.name,
            kind=config.kind,
            backbone=backbone.reference,
            shared_adapter=_SHARED_ADAPTER if trained.shared_adapter is not None else None,
            pooling=_first_model(trained).pooling,
            max_length=config.max_length,
            truncation=config.truncation,
            bos_ids=base.bos_ids,
            eos_ids=base.eos_ids,
            prompt_format=base.prompt,
            members=_member_entries(config, measured),
            pair_temperature=measured.pair_temperature,
            reference_stats=measured.reference_stats,
            training_data=training_data,
            metrics=metrics,
            licence=config.licence,
            parent_version=base.bundle.version if base.bundle is not None else None,
        )

        def write_files(root: Path) -> None:
            for name, folder in backbone.bodies.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(folder, root / name)
            _write_shared_adapter(root, config, trained, base)
            _write_members(root, config, trained, backbone.reference)
            write_golden(root, _golden_items(trained, base.encoder))

        return write_bundle(target, manifest, write_files)


def _first_model(trained: TrainedEnsemble) -> EnsembleModel:
    model = trained.model.models[0] if isinstance(trained.model, SinglesModel) else trained.model
    assert isinstance(model, EnsembleModel)
    return model


def _stage_backbone(staging: Path, config: TrainConfig, trained: TrainedEnsemble, base: Base) -> _Backbone:
    """Backbones that were trained in full, or that stand in the bundle that was started from, go into this one."""
    if trained.bodies:
        names = [body_folder(name) for name in _member_names(config)] if config.kind == "singles" else [_BODY]
        folders = {}
        for index, (name, weights) in enumerate(zip(names, trained.bodies, strict=True)):
            folders[name] = _stage_body(staging / str(index), base.start.folder, weights, with_tokenizer=index == 0)
        return _Backbone(reference_to(f"{BUNDLE_SCHEME}{names[0]}", folders[names[0]]), folders)
    if base.reference.source.startswith(BUNDLE_SCHEME):
        shutil.copytree(base.start.folder, staging / _BODY)
        return _Backbone(reference_to(f"{BUNDLE_SCHEME}{_BODY}", staging / _BODY), {_BODY: staging / _BODY})
    return _Backbone(base.reference, {})


def _stage_body(target: Path, folder: Path, weights: dict[str, Tensor], *, with_tokenizer: bool) -> Path:
    backbone = load_backbone(folder)
    backbone.body.load_state_dict(weights)
    save_body(target, backbone)
    if with_tokenizer:
        load_tokenizer(folder).save_pretrained(target)
    return target


def _member_names(config: TrainConfig) -> list[str]:
    width = max(2, len(str(config.members - 1)))
    return [f"m{index:0{width}d}" for index in range(config.members)]


def _member_entries(config: TrainConfig, measured: Measured) -> list[MemberEntry]:
    entries = []
    for name, seed, calibration in zip(_member_names(config), config.member_seeds(), measured.calibration, strict=True):
        adapter = f"members/{name}" if config.kind == "lora" else None
        body = body_folder(name) if config.kind == "singles" else None
        head = f"{adapter}/adapter_model.safetensors" if adapter else HEADS_NAME
        entries.append(
            MemberEntry(name=name, adapter=adapter, backbone=body, head=head, calibration=calibration, seed=seed)
        )
    return entries


def _write_shared_adapter(root: Path, config: TrainConfig, trained: TrainedEnsemble, base: Base) -> None:
    if trained.shared_adapter is None:
        return
    if base.shared_adapter_folder is not None:
        shutil.copytree(base.shared_adapter_folder, root / _SHARED_ADAPTER)
        return
    assert config.phase1 is not None
    write_adapter(
        root / _SHARED_ADAPTER,
        trained.shared_adapter,
        base_source=base.reference.source,
        alpha=config.phase1.lora.alpha,
        head_modules=[],
    )


def _write_members(root: Path, config: TrainConfig, trained: TrainedEnsemble, backbone: BackboneRef) -> None:
    names = _member_names(config)
    if isinstance(trained.model, SinglesModel):
        heads = [model.heads.member_state(0) for model in trained.model.models if isinstance(model, EnsembleModel)]
        save_heads(root / HEADS_NAME, dict(zip(names, heads, strict=True)))
        return
    model = trained.model
    heads = [model.heads.member_state(index) for index in range(config.members)]
    if config.phase2 is None:
        save_heads(root / HEADS_NAME, dict(zip(names, heads, strict=True)))
        return
    for index, (name, head) in enumerate(zip(names, heads, strict=True)):
        write_adapter(
            root / "members" / name,
            AdapterState(model.adapter_of(index), head),
            base_source=backbone.source,
            alpha=config.phase2.lora.alpha,
            head_modules=model.backbone.head.module_names,
        )


def _golden_items(trained: TrainedEnsemble, encoder: PromptEncoder) -> list[GoldenItem]:
    """Each input alone, so that golden scores have no batch companions."""
    items = []
    for prompt, response in _GOLDEN_PAIRS:
        ids = encoder.encode(ScoreItem(prompt=prompt, response=response)).ids
        with torch.inference_mode():
            scores = trained.model([[ids]])[:, 0]
        items.append(GoldenItem(token_ids=ids, scores=[float(score) for score in scores]))
    return items
