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
    """Two members; everything can be changed."""
    members = [
        MemberEntry(
            name=name,
            adapter=f"members/{name}" if kind == "lora" else None,
            head=f"members/{name}/adapter_model.safetensors" if kind == "lora" else "heads.safetensors",
            calibration=MemberCalibration(mean=0.25 * seed, scale=1.0 + seed),
            seed=seed,
        )
        for seed, name in enumerate(("m00", "m01"))
    ]
    values: dict[str, Any] = {
        "name": "small",
        "kind": kind,
        "backbone": BackboneRef(source="org/base", weights_sha256="ab" * 32, tokenizer_sha256="cd" * 32),
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


def write_small_files(root: Path, manifest: Manifest) -> None:
    """The files that `manifest` asks for."""
    if manifest.shared_adapter is not None:
        write_adapter_files(root / manifest.shared_adapter, (LORA,))
    if manifest.kind == "lora":
        for member in manifest.members:
            write_adapter_files(root / str(member.adapter))
    else:
        names = [f"{member.name}.classifier.weight" for member in manifest.members]
        save_file({name: np.ones((1, 3), np.float32) for name in names}, root / "heads.safetensors")
    if manifest.backbone.source.startswith("bundle:"):
        (root / "backbone").mkdir()
        (root / "backbone" / "config.json").write_text("{}")
        save_file({"x": np.zeros(2, np.float32)}, root / "backbone" / "model.safetensors")
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
