"""Bundles without a model behind them: real files, hashes and safetensors, made with numpy alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from quorum_model.bundle.golden import GoldenItem, write_golden
from quorum_model.bundle.manifest import (
    BackboneRef,
    Manifest,
    MemberCalibration,
    MemberEntry,
    PromptFormat,
    fingerprint_of,
)
from quorum_model.bundle.read import Bundle
from quorum_model.bundle.write import write_bundle

HEAD = "base_model.model.classifier.weight"
LORA = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"


def make_manifest(kind: str = "lora", **changes: Any) -> Manifest:
    """Two members, or one where the kind has one; everything can be changed."""
    has_adapters = kind in ("lora", "merged")
    members = [
        MemberEntry(
            name=name,
            adapter=f"members/{name}" if has_adapters else None,
            head=f"members/{name}/adapter_model.safetensors" if has_adapters else "heads.safetensors",
            backbone=f"backbones/{name}" if kind == "singles" else None,
            calibration=MemberCalibration(mean=0.25 * seed, scale=1.0 + seed),
            seed=seed,
        )
        for seed, name in enumerate(("m00",) if kind in ("single", "merged") else ("m00", "m01"))
    ]
    source = "bundle:backbones/m00" if kind == "singles" else "org/base"
    values: dict[str, Any] = {
        "name": "small",
        "kind": kind,
        "backbone": BackboneRef(source=source, weights_sha256="ab" * 32, tokenizer_sha256="cd" * 32),
        "pooling": "first",
        "max_length": 64,
        "bos_ids": [1],
        "eos_ids": [2],
        "prompt_format": PromptFormat(
            template="{{ messages }}", origin="plain", fingerprint=fingerprint_of("{{ messages }}", [1], [2])
        ),
        "members": members,
    }
    return Manifest(**(values | changes))


def write_adapter_files(folder: Path, tensor_names: tuple[str, ...] = (HEAD, LORA)) -> None:
    """A PEFT adapter by its files."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({name: np.ones((1, 3), np.float32) for name in tensor_names}, folder / "adapter_model.safetensors")


def write_body_files(folder: Path) -> None:
    """A body by its files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({"x": np.zeros(2, np.float32)}, folder / "model.safetensors")


def write_small_files(root: Path, manifest: Manifest) -> None:
    """The files that `manifest` asks for."""
    if manifest.shared_adapter is not None:
        write_adapter_files(root / manifest.shared_adapter, (LORA,))
    if manifest.members[0].adapter is not None:
        for member in manifest.members:
            write_adapter_files(root / str(member.adapter))
    else:
        names = [f"{member.name}.classifier.weight" for member in manifest.members]
        save_file({name: np.ones((1, 3), np.float32) for name in names}, root / "heads.safetensors")
    if manifest.backbone.source == "bundle:backbone":
        write_body_files(root / "backbone")
    for member in manifest.members:
        if member.backbone is not None:
            write_body_files(root / member.backbone)
    write_golden(root, [GoldenItem(token_ids=[1, 5, 2], scores=[0.5] * len(manifest.members))])


def make_bundle(target: Path, kind: str = "lora", **changes: Any) -> Bundle:
    """A whole bundle on disk."""
    manifest = make_manifest(kind, **changes)
    return write_bundle(target, manifest, lambda root: write_small_files(root, manifest))


def forge(root: Path, change: Callable[[dict[str, Any]], None] = lambda manifest: None) -> None:
    """Make manifest.json agree with what lies in the folder, then `change` it: past the hashes, to the other checks."""
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"] = {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path != root / "manifest.json"
    }
    change(manifest)
    (root / "manifest.json").write_text(json.dumps(manifest))
