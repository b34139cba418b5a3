"""Everything a run needs before its first step: backbone, prompt format, data.

    TrainConfig  --find_base-->  Base (Start, PromptEncoder)  --load_data-->  Dataset

Reads files and a tokenizer; loads no backbone weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from quorum_model.adapters import read_adapter
from quorum_model.backbone import is_causal
from quorum_model.bundle.manifest import BackboneRef, PromptFormat, TrainingData
from quorum_model.bundle.parts import read_heads
from quorum_model.bundle.read import Bundle, read_bundle, resolve_bundle
from quorum_model.prompts import PromptEncoder, default_prompt_format
from quorum_model.sources import check_tokenizer, check_weights, load_tokenizer, reference_to, resolve_backbone
from quorum_trainer.config import ConfigError, TrainConfig
from quorum_trainer.data import (
    Audit,
    EncodedPair,
    SourceSplit,
    audit_splits,
    encode_pairs,
    read_source,
    split_held_out,
    take,
)
from quorum_trainer.training.phases import Start


@dataclass(frozen=True, slots=True)
class Base:
    """What the members are trained upon.

    start: for the arithmetic. reference: as the manifest names the backbone. prompt, bos_ids, eos_ids: how text becomes
    tokens, which `encoder` does. bundle: that phase 2 starts from, if it does.
    """

    start: Start
    reference: BackboneRef
    prompt: PromptFormat
    bos_ids: list[int]
    eos_ids: list[int]
    encoder: PromptEncoder
    bundle: Bundle | None = None

    def hashes(self) -> dict[str, str]:
        """Of everything here that scores depend on."""
        found = {"backbone": self.reference.weights_sha256, "tokenizer": self.reference.tokenizer_sha256}
        return {**found, "start_from": self.bundle.version} if self.bundle is not None else found

    def training_data(self) -> list[TrainingData]:
        """What the bundle that is started from was trained on."""
        return list(self.bundle.manifest.training_data) if self.bundle is not None else []

    @property
    def shared_adapter_folder(self) -> Path | None:
        """Of the bundle that is started from, where it has one."""
        if self.bundle is None or self.bundle.manifest.shared_adapter is None:
            return None
        return self.bundle.path / self.bundle.manifest.shared_adapter


@dataclass(frozen=True, slots=True)
class Dataset:
    """All sources of a config, split, freed of leaks and encoded."""

    train: list[EncodedPair]
    held_out: list[EncodedPair]
    described: list[TrainingData]
    audit: Audit

    def hashes(self) -> dict[str, str]:
        """sha256 of every source, by name."""
        return {f"data {data.name}": data.sha256 for data in self.described}


def find_base(config: TrainConfig) -> Base:
    """The backbone of a config, or what its bundle brings.

    Raises:
        BackboneNotFound, BackboneMismatch, BundleError, Unsupported: it cannot be had, or is not what it should be.
        ConfigError: the bundle cannot be started from.
    """
    if config.start_from is not None:
        return _base_of_bundle(config, read_bundle(resolve_bundle(config.start_from)))
    assert config.backbone is not None
    folder = resolve_backbone(config.backbone, revision=config.revision)
    tokenizer = load_tokenizer(folder)
    prompt, bos_ids, eos_ids = default_prompt_format(tokenizer, is_causal=is_causal(folder))
    encoder = _encoder(config, tokenizer, prompt, bos_ids, eos_ids)
    revision = config.revision
    if folder.parent.name == "snapshots":  # of the hub's cache: its name is the commit, which no branch moves away from
        revision = folder.name
    reference = reference_to(config.backbone, folder, revision=revision)
    return Base(Start(folder), reference, prompt, bos_ids, eos_ids, encoder)


def _base_of_bundle(config: TrainConfig, bundle: Bundle) -> Base:
    """Backbone, shared adapter, heads and prompt format of a bundle; members' adapters, if any, are not taken over."""
    manifest = bundle.manifest
    if manifest.kind in ("singles", "merged"):
        raise ConfigError(f"start_from: a bundle of kind '{manifest.kind}' has no backbone that members share")
    reference = manifest.backbone
    folder = resolve_backbone(reference.source, revision=reference.revision, bundle_path=bundle.path)
    check_weights(folder, reference)
    check_tokenizer(folder, reference)
    shared = read_adapter(bundle.path / manifest.shared_adapter) if manifest.shared_adapter is not None else None
    start = Start(folder, shared, _heads_to_start_from(config, bundle), manifest.pooling)
    encoder = _encoder(config, load_tokenizer(folder), manifest.prompt_format, manifest.bos_ids, manifest.eos_ids)
    return Base(start, reference, manifest.prompt_format, manifest.bos_ids, manifest.eos_ids, encoder, bundle)


def _encoder(
    config: TrainConfig, tokenizer: Any, prompt: PromptFormat, bos_ids: list[int], eos_ids: list[int]
) -> PromptEncoder:
    return PromptEncoder(
        tokenizer,
        template=prompt.template,
        bos_ids=bos_ids,
        eos_ids=eos_ids,
        max_length=config.max_length,
        truncation=config.truncation,
    )


def _heads_to_start_from(config: TrainConfig, bundle: Bundle) -> Sequence[Mapping[str, Tensor]]:
    """One head for all members (kind single), or one each."""
    entries = bundle.manifest.members
    if bundle.manifest.kind == "lora":
        heads: Sequence[Mapping[str, Tensor]] = [read_adapter(bundle.path / str(e.adapter)).head for e in entries]
    else:
        heads = read_heads(bundle.path, entries)
    if len(heads) == 1:
        return list(heads) * config.members
    if len(heads) != config.members:
        raise ConfigError(f"start_from: the bundle has {len(heads)} heads for {config.members} members")
    return heads


def require_portable(config: TrainConfig, base: Base) -> None:
    """Refuse a bundle that only this machine could load.

    Raises:
        ConfigError: its backbone would be a folder here.
    """
    in_bundle = config.phase1 is not None and config.phase1.method == "full"
    if not in_bundle and Path(base.reference.source).is_absolute():
        raise ConfigError("--push: the backbone is a folder of this machine; give a hub id, or train it in full")


def load_data(config: TrainConfig, encoder: PromptEncoder) -> Dataset:
    """Read, split, audit and encode every source.

    Raises:
        DataError: a file, line or row that cannot be used.
        ConfigError: nothing is held out, so that nothing could be calibrated, or nothing is left to train on.
    """
    splits, hashes = [], []
    for source in config.data:
        read = read_source(source)
        kept, held_out = split_held_out(read.pairs, source.held_out, config.seed)
        splits.append(SourceSplit(source.name, take(kept, source.max_pairs, config.seed), held_out))
        hashes.append(read.sha256)
    splits, audit = audit_splits(splits)
    if not any(audit.train.values()):
        raise ConfigError("no pairs are left to train on: every prompt is held out")
    if config.loss.margins and not any(pair.margin is not None for split in splits for pair in split.train):
        raise ConfigError("loss.margins: no training pair has a margin")
    if not any(not pair.tie for split in splits for pair in split.held_out):
        raise ConfigError("no pairs are held out: calibration needs some, and not ties alone (data.held_out)")
    train, held_out_pairs, described = [], [], []
    for source, split, sha256 in zip(config.data, splits, hashes, strict=True):
        train += encode_pairs(encoder, split.train, source.name, source.phase, source.weight)
        held_out_pairs += encode_pairs(encoder, split.held_out, source.name)
        described.append(
            TrainingData(name=source.name, sha256=sha256, num_pairs=len(split.train), licence=source.licence)
        )
    return Dataset(train, held_out_pairs, described, audit)
