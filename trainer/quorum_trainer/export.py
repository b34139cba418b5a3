"""From a trained ensemble to a bundle on disk.

    TrainedEnsemble, Measured  --export_bundle-->  bundle folder, verified by reading it back

Knows nothing of how the members were trained.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from quorum_client.types import ScoreItem
from quorum_model.adapters import AdapterState, write_adapter
from quorum_model.backbone import load_backbone
from quorum_model.bundle.golden import GoldenItem, write_golden
from quorum_model.bundle.manifest import BackboneRef, Manifest, MemberEntry, PromptFormat, TrainingData
from quorum_model.bundle.read import Bundle
from quorum_model.bundle.write import write_bundle
from quorum_model.prompts import PromptEncoder
from quorum_model.sources import BUNDLE_SCHEME, load_tokenizer, reference_to
from quorum_trainer.config import TrainConfig
from quorum_trainer.ensemble import TrainedEnsemble
from quorum_trainer.measure import Measured

# The self-test's inputs: ours, of several lengths, none from any data set.
_GOLDEN_PAIRS = (
    ("What is the capital of France?", "Paris."),
    ("What is the capital of France?", "I will not tell you, and you should be ashamed of asking."),
    ("How do I boil an egg?", "Put it in boiling water for eight minutes, then cool it under the tap."),
    ("Write a short poem about rain.", "Rain on the roof, rain on the street,\nrain on the shoes on everyone's feet."),
    ("My neighbour is loud at night. What can I do?", "Talk to them first, calmly and by day. If nothing changes, "
     "note the times and ask your landlord or the council to mediate."),
)  # fmt: skip


def export_bundle(
    target: Path,
    config: TrainConfig,
    trained: TrainedEnsemble,
    measured: Measured,
    *,
    folder: Path,
    encoder: PromptEncoder,
    prompt: tuple[PromptFormat, list[int], list[int]],
    training_data: list[TrainingData],
) -> Bundle:
    """Write the bundle of a training run.

    Args:
        target: must not exist.
        config: of the run.
        trained: its result.
        measured: its held-out figures and calibration.
        folder: the backbone's, as it was before training.
        encoder: of the run's prompt format.
        prompt: (format, bos_ids, eos_ids).
        training_data: what it was trained on.
    """
    prompt_format, bos_ids, eos_ids = prompt
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=".backbone-") as staging:
        backbone = reference_to(config.backbone, folder, revision=config.revision)
        if trained.backbone_weights is not None:
            backbone = _stage_backbone(Path(staging) / "backbone", folder, trained.backbone_weights)
        manifest = Manifest(
            name=config.name,
            kind=config.kind,
            backbone=backbone,
            shared_adapter="shared_adapter" if trained.shared_adapter is not None else None,
            pooling=trained.model.pooling,
            max_length=config.max_length,
            truncation=config.truncation,
            bos_ids=bos_ids,
            eos_ids=eos_ids,
            prompt_format=prompt_format,
            members=_member_entries(config, measured),
            pair_temperature=measured.pair_temperature,
            reference_stats=measured.reference_stats,
            training_data=training_data,
            metrics=measured.metrics,
            licence=config.licence,
        )

        def write_files(root: Path) -> None:
            if trained.backbone_weights is not None:
                shutil.move(Path(staging) / "backbone", root / "backbone")
            _write_members(root, config, trained)
            write_golden(root, _golden_items(trained, encoder))

        return write_bundle(target, manifest, write_files)


def _stage_backbone(target: Path, folder: Path, weights: dict[str, Tensor]) -> BackboneRef:
    """A backbone that phase 1 trained in full becomes part of the bundle."""
    backbone = load_backbone(folder)
    backbone.body.load_state_dict(weights)
    # The body alone: the heads are the members', and a random one beside them would only mislead.
    backbone.body.save_pretrained(target)
    load_tokenizer(folder).save_pretrained(target)
    return reference_to(f"{BUNDLE_SCHEME}backbone", target)


def _member_names(config: TrainConfig) -> list[str]:
    width = max(2, len(str(config.members - 1)))
    return [f"m{index:0{width}d}" for index in range(config.members)]


def _member_entries(config: TrainConfig, measured: Measured) -> list[MemberEntry]:
    entries = []
    for name, seed, calibration in zip(_member_names(config), config.member_seeds(), measured.calibration, strict=True):
        adapter = f"members/{name}" if config.kind == "lora" else None
        head = f"{adapter}/adapter_model.safetensors" if adapter else "heads.safetensors"
        entries.append(MemberEntry(name=name, adapter=adapter, head=head, calibration=calibration, seed=seed))
    return entries


def _write_members(root: Path, config: TrainConfig, trained: TrainedEnsemble) -> None:
    model = trained.model
    if trained.shared_adapter is not None:
        assert config.phase1 is not None
        write_adapter(
            root / "shared_adapter",
            trained.shared_adapter,
            base_source=config.backbone,
            alpha=config.phase1.lora.alpha,
            head_modules=[],
        )
    heads = {name: model.heads.member_state(index) for index, name in enumerate(_member_names(config))}
    if config.kind == "linear":
        tensors = {f"{name}.{key}": value for name, head in heads.items() for key, value in head.items()}
        save_file(tensors, root / "heads.safetensors", metadata={"format": "pt"})
        return
    assert config.phase2 is not None
    for index, (name, head) in enumerate(heads.items()):
        write_adapter(
            root / "members" / name,
            AdapterState(model.adapter_of(index), head),
            base_source=config.backbone,
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
