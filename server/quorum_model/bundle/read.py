"""Finding a bundle and proving that it is whole before anything of it is used.

    source  --resolve_bundle-->  folder  --read_bundle-->  Bundle

Every byte is hashed; heads are looked for by name. Loads no tensor, and knows no model: the self-test follows at load.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from huggingface_hub import snapshot_download
from pydantic import BaseModel, Field, ValidationError

from quorum_model.bundle.files import (
    CARD_NAME,
    HUB_PATTERNS,
    MANIFEST_NAME,
    check_format,
    check_path,
    hash_file,
    list_files,
    tensor_names,
)
from quorum_model.bundle.manifest import Manifest, MemberEntry, parse_manifest, version_of
from quorum_model.errors import BundleCorrupt, BundleError, HeadMissing

DEFAULT_SOURCE = "default"
GOLDEN_NAME = "golden.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
WEIGHTS_NAME = "model.safetensors"

# No "..": the hub's client looks revisions up as files of its cache.
_HUB_ID = re.compile(r"(?!.*\.\.)(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
_BACKBONE_SCHEME = "bundle:"


class _WeightsIndex(BaseModel):
    """What Transformers writes beside sharded weights; `weight_map` says which file holds a parameter."""

    weight_map: dict[str, str] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle. path: its folder. version: first 12 hex digits of the sha256 of manifest.json."""

    path: Path
    manifest: Manifest
    version: str


def resolve_bundle(source: str) -> Path:
    """Find a bundle's folder; what is in it is not looked at.

    Args:
        source: "default" (the ensemble that ships with Quorum), a folder, or a hub id `org/name` or
            `org/name@revision`, which is downloaded.

    Raises:
        BundleError: there is none, and why.
    """
    if source == DEFAULT_SOURCE:
        shipped = Path(str(files("quorum_model"))) / "default_bundle"
        if not shipped.is_dir():
            raise BundleError("this installation carries no default bundle; give a bundle's folder or hub id")
        return shipped
    try:
        path = Path(source).expanduser()
        if source and path.exists():
            return path
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a home of nobody
        raise BundleError(f"no such folder: {source[:80]!r} ({error})") from error
    hub_id = _HUB_ID.fullmatch(source)
    if hub_id is None:
        raise BundleError(f"no such folder: {source} (a hub id would be org/name or org/name@revision)")
    try:
        return Path(snapshot_download(hub_id["repo"], revision=hub_id["revision"], allow_patterns=HUB_PATTERNS))
    except Exception as error:  # the hub's client also lets through its HTTP library's, of whatever library that is
        raise BundleError(f"{source} is not a folder here, and not to be had from the hub: {error}") from error


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form of a hub id, `org/name` or `org/name@revision`."""
    return _HUB_ID.fullmatch(source) is not None


def read_bundle(path: Path) -> Bundle:
    """Verify a bundle.

    Raises:
        BundleError: no such folder, or not a bundle.
        BundleFromFuture: written by a newer Quorum.
        BundleCorrupt: a file is missing, extra, changed, or of a format that bundles do not have.
        HeadMissing: a member without a trained head.
    """
    if not path.is_dir():
        raise BundleError(f"no such folder: {path}")
    try:
        manifest_bytes = (path / MANIFEST_NAME).read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST_NAME}") from error
    except OSError as error:
        raise BundleCorrupt(f"{MANIFEST_NAME} cannot be read: {error.strerror}") from error
    manifest = parse_manifest(manifest_bytes)
    _check_files(path, manifest)
    _check_parts(path, manifest)
    return Bundle(path, manifest, version_of(manifest_bytes))


def _check_files(root: Path, manifest: Manifest) -> None:
    """Exactly the files of the manifest are there, each with its hash, and each of a known format."""
    for relative in manifest.files:
        check_path(relative)
        check_format(relative)
    present = list_files(root)
    for relative in present:
        check_format(relative)
    missing, extra = sorted(set(manifest.files) - set(present)), sorted(set(present) - set(manifest.files))
    if missing:
        raise BundleCorrupt(f"{missing[0]} is missing{_and_others(missing)}")
    if extra:
        raise BundleCorrupt(f"{extra[0]} is in the folder but not in manifest.json{_and_others(extra)}")
    for relative in present:
        actual = hash_file(root, relative)
        if actual != manifest.files[relative]:
            raise BundleCorrupt(
                f"{relative} has sha256 {actual}, manifest.json says {manifest.files[relative]}: it has changed"
            )
        if relative.endswith(".safetensors"):
            tensor_names(root, relative)


def _and_others(names: Collection[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_parts(root: Path, manifest: Manifest) -> None:
    """What the manifest refers to is among its files, and every member has a head."""
    _require(manifest, GOLDEN_NAME, CARD_NAME)
    if manifest.shared_adapter is not None:
        _require(manifest, *(f"{manifest.shared_adapter}/{name}" for name in ADAPTER_FILES))
    if manifest.backbone.source.startswith(_BACKBONE_SCHEME):
        _require(manifest, f"{manifest.backbone.source.removeprefix(_BACKBONE_SCHEME)}/config.json")
    for member in manifest.members:
        if member.adapter is not None:
            _require(manifest, *(f"{member.adapter}/{name}" for name in ADAPTER_FILES))
        if member.backbone is not None:
            _require_body(root, manifest, member.backbone)
        _require(manifest, member.head)
        if not head_tensors(root, member):
            raise HeadMissing(f"member {member.name} has no trained head in {member.head}: its scores would be random")


def _require(manifest: Manifest, *names: str) -> None:
    for name in names:
        if name not in manifest.files:
            raise BundleCorrupt(f"{name} is missing: the bundle needs it, and manifest.json does not list it")


def _require_body(root: Path, manifest: Manifest, folder: str) -> None:
    """A body's config and weights: one file, or all the shards that its index names."""
    _require(manifest, f"{folder}/config.json")
    index = f"{folder}/{WEIGHTS_NAME}.index.json"
    if index not in manifest.files:
        _require(manifest, f"{folder}/{WEIGHTS_NAME}")
        return
    try:
        shards = _WeightsIndex.model_validate_json((root / index).read_bytes()).weight_map.values()
    except (OSError, ValidationError) as error:
        raise BundleCorrupt(f"{index} is not an index of weights") from error
    _require(manifest, *(f"{folder}/{shard}" for shard in sorted(set(shards))))


def head_tensors(root: Path, member: MemberEntry) -> list[str]:
    """Names of a member's head parameters, as the sequence-classification model has them; empty without a head."""
    names = tensor_names(root, member.head)
    if member.adapter is not None:
        return [name.removeprefix("base_model.model.") for name in names if "lora_" not in name]
    prefix = f"{member.name}."
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
