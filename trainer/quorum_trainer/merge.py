"""`quorum merge`: the members of an ensemble become one model, for the price of one.

    bundle of kind lora [, held-out pairs]  --merge_bundle-->  bundle of kind merged

The order of it, and its output; the average itself is `quorum_model.merge`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track

from quorum_model.adapters import write_adapter
from quorum_model.bundle.golden import GoldenItem, read_golden, write_golden
from quorum_model.bundle.manifest import Manifest, MemberCalibration, MemberEntry
from quorum_model.bundle.read import Bundle, read_bundle, resolve_bundle
from quorum_model.bundle.write import write_bundle
from quorum_model.casting import cast_weights
from quorum_model.errors import BundleError, Unsupported
from quorum_model.loading import choose_device, load_shared_backbone, read_member_adapters
from quorum_model.merge import MergedMember, merge_members, projection_of
from quorum_model.model import EnsembleModel
from quorum_model.prompts import load_prompt_encoder
from quorum_model.sources import BUNDLE_SCHEME
from quorum_trainer.data import EncodedPair, encode_pairs, hash_file, read_pairs
from quorum_trainer.measure import Measured, measure
from quorum_trainer.training.held_out import score_pairs

console = Console(stderr=True)

_MEMBER = "m00"
_ADAPTER = f"members/{_MEMBER}"
_SUFFIX = "-merged"
_MAX_NAME = 64
_PAIRS_A_STEP = 512


@dataclass(frozen=True, slots=True)
class CalibrationPairs:
    """Held-out pairs, encoded as the parent encodes. sha256: of the file that they come from."""

    pairs: list[EncodedPair]
    sha256: str


def merge(
    bundle: Annotated[str, typer.Argument(help="A bundle of kind lora: a folder, a hub id, or 'default'.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to write; must not exist.")],
    pairs: Annotated[
        Path | None, typer.Option(help="Held-out pairs (JSON lines) to calibrate the result on.", dir_okay=False)
    ] = None,
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
) -> None:
    """Average an ensemble's members into one model: the cost of one, and no uncertainty."""
    if os.path.lexists(out):
        raise BundleError(f"{out} exists already; choose another --out")
    parent = read_bundle(resolve_bundle(bundle))
    require_mergeable(parent)
    held_out = None if pairs is None else load_pairs(parent, pairs)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    merged = merge_bundle(parent, out, held_out)
    _print_summary(parent, merged)
    if print_json:
        typer.echo(json.dumps(_summary(parent, merged)))


def require_mergeable(parent: Bundle) -> None:
    """Refuse an ensemble whose members are not updates of one backbone.

    Raises:
        Unsupported: it is of another kind than `lora`.
    """
    if parent.manifest.kind != "lora":
        raise Unsupported(f"kind '{parent.manifest.kind}' cannot be merged, only 'lora': members that are adapters")


def load_pairs(parent: Bundle, path: Path) -> CalibrationPairs:
    """Pairs for `merge_bundle`, encoded by the parent's own prompt format.

    Raises:
        DataError: the file or a line of it cannot be used.
    """
    pairs = encode_pairs(load_prompt_encoder(parent), read_pairs(path), path.name)
    return CalibrationPairs(pairs, hash_file(path))


def merge_bundle(parent: Bundle, target: Path, held_out: CalibrationPairs | None = None) -> Bundle:
    """Merge and write.

    Args:
        parent: of kind `lora`.
        target: must not exist; its parent folder must.
        held_out: what calibration, pair temperature and reference statistics are measured on. Without it scores are
            in the average of the members' calibrated units, which is not the merged model's own scale.

    Raises:
        BundleError: the parent cannot be merged, or the target not written.
        CalibrationFailed: no scale follows from the pairs.
    """
    require_mergeable(parent)
    backbone = load_shared_backbone(parent)
    calibration = [member.calibration for member in parent.manifest.members]
    merged = merge_members(read_member_adapters(parent), calibration, projection_of(backbone.head))
    head_modules = backbone.head.module_names
    cast_weights(backbone.model, torch.float32, choose_device("auto"))
    model = EnsembleModel(backbone, [merged.state.lora], [merged.state.head], parent.manifest.pooling)
    model.eval().requires_grad_(False)
    measured = None
    if held_out is not None:
        measured = _measure(model, held_out.pairs)
    manifest = _manifest_of(parent, merged, measured, held_out)

    def write_files(root: Path) -> None:
        for folder in _shared_folders(parent.manifest):
            shutil.copytree(parent.path / folder, root / folder)
        write_adapter(
            root / _ADAPTER,
            merged.state,
            base_source=parent.manifest.backbone.source,
            alpha=max(update.a.shape[0] for update in merged.state.lora.values()),  # scaling 1
            head_modules=head_modules,
        )
        write_golden(root, _golden_items(parent, model))

    return write_bundle(target, manifest, write_files)


def _measure(model: EnsembleModel, pairs: list[EncodedPair]) -> Measured:
    starts = range(0, len(pairs), _PAIRS_A_STEP)
    watched = track(starts, "scoring pairs", console=console, disable=not console.is_terminal)
    parts = [score_pairs(model, pairs[start : start + _PAIRS_A_STEP]) for start in watched]
    chosen, rejected = (torch.cat(side, dim=1).numpy() for side in zip(*parts, strict=True))
    return measure(chosen, rejected, pairs)


def _manifest_of(
    parent: Bundle, merged: MergedMember, measured: Measured | None, held_out: CalibrationPairs | None
) -> Manifest:
    """The parent's, but for what is said of its members, which is not true of their average."""
    changes: dict[str, Any] = {
        "name": parent.manifest.name[: _MAX_NAME - len(_SUFFIX)] + _SUFFIX,
        "kind": "merged",
        "parent_version": parent.version,
        "pair_temperature": 1.0,
        "default_mode": "mean",
        "default_beta": None,
        "reference_stats": None,
        "metrics": {},
        "files": {},
    }
    calibration = MemberCalibration(mean=merged.offset)
    if measured is not None and held_out is not None:
        calibration = measured.calibration[0]
        changes |= {
            "pair_temperature": measured.pair_temperature,
            "reference_stats": measured.reference_stats,
            "metrics": {**measured.metrics, "held_out_file": {"sha256": held_out.sha256}},
        }
    member = MemberEntry(
        name=_MEMBER,
        adapter=_ADAPTER,
        head=f"{_ADAPTER}/adapter_model.safetensors",
        calibration=calibration,
        seed=parent.manifest.members[0].seed,
    )
    return Manifest.model_validate(parent.manifest.model_dump() | changes | {"members": [member]})


def _shared_folders(manifest: Manifest) -> list[str]:
    """What the result has in common with its parent."""
    folders = [] if manifest.shared_adapter is None else [manifest.shared_adapter]
    if manifest.backbone.source.startswith(BUNDLE_SCHEME):
        folders.append(manifest.backbone.source.removeprefix(BUNDLE_SCHEME))
    return folders


def _golden_items(parent: Bundle, model: Callable[[list[list[list[int]]]], torch.Tensor]) -> list[GoldenItem]:
    """The parent's inputs with this model's scores, each alone."""
    items = []
    for item in read_golden(parent):
        with torch.inference_mode():
            scores = model([[item.token_ids]])[:, 0].tolist()
        items.append(GoldenItem(token_ids=item.token_ids, scores=scores))
    return items


def _summary(parent: Bundle, merged: Bundle) -> dict[str, Any]:
    manifest = merged.manifest
    return {
        "bundle": str(merged.path),
        "name": manifest.name,
        "version": merged.version,
        "parent_version": parent.version,
        "members_merged": len(parent.manifest.members),
        "calibrated": manifest.reference_stats is not None,
        "pair_temperature": manifest.pair_temperature,
        "bytes": {"parent": _size_bytes(parent), "merged": _size_bytes(merged)},
        **manifest.metrics,
    }


def _print_summary(parent: Bundle, merged: Bundle) -> None:
    manifest = merged.manifest
    console.print(f"{len(parent.manifest.members)} members of {parent.manifest.name} {parent.version} merged into one")
    if manifest.reference_stats is None:
        console.print(
            "not calibrated: scores are in the average of the members' calibrated units, and probabilities of "
            "/compare are not fitted; give --pairs with held-out pairs to measure both"
        )
    else:
        figures = manifest.metrics["held_out"]["all"]
        console.print(
            f"accuracy {figures['ensemble_mean']:.3f} on {figures['num_pairs']} held-out pairs, "
            f"pair temperature {manifest.pair_temperature:.4g}"
        )
    console.print(f"written to {merged.path}: {manifest.name} {merged.version}")


def _size_bytes(bundle: Bundle) -> int:
    return sum((bundle.path / name).stat().st_size for name in bundle.manifest.files)
