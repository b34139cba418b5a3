"""The parts of a bundle that hold tensors but no adapter: heads of several members in one file, and whole bodies.

    heads, bodies  --save_heads, save_body-->  heads.safetensors, backbones/m00/…  --read_heads-->  heads

Where they lie and how they are named; adapters are written by `quorum_model.adapters`. Knows no manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from quorum_model.backbone import Backbone
from quorum_model.bundle.manifest import MemberEntry

HEADS_NAME = "heads.safetensors"
"""Heads of all members without an adapter: `m00.classifier.weight`, `m01.classifier.weight`, …"""


def body_folder(member: str) -> str:
    """Where a member of kind `singles` has its whole body, by the member's name."""
    return f"backbones/{member}"


def save_body(folder: Path, backbone: Backbone) -> None:
    """Write config.json and the weights of a body without its head, sharded where it is large.

    The body alone: heads are the members', and a random one beside them would only mislead. A tokenizer is not part of
    it; of kind `singles`, the first member's folder holds the tokenizer too.

    Args:
        folder: created if need be.
        backbone: not folded: adapters inside a body are no weights of it.
    """
    backbone.body.save_pretrained(folder)


def save_heads(path: Path, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write all heads into one safetensors file.

    Args:
        path: `HEADS_NAME` in the bundle.
        heads: by member name, then by the parameter's name in the sequence-classification model.
    """
    tensors = {f"{member}.{name}": value for member, head in heads.items() for name, value in head.items()}
    # Cloned: safetensors refuses tensors that share memory, as slices of stacked heads do.
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, path,
              metadata={"format": "pt"})  # fmt: skip


def read_heads(root: Path, members: Sequence[MemberEntry]) -> list[Mapping[str, Tensor]]:
    """The heads of members without adapters, in their order; empty for a member that its file does not hold."""
    tensors = {name: load_file(root / name) for name in {member.head for member in members}}
    heads: list[Mapping[str, Tensor]] = []
    for member in members:
        prefix = f"{member.name}."
        own = {key: value for key, value in tensors[member.head].items() if key.startswith(prefix)}
        heads.append({key.removeprefix(prefix): value for key, value in own.items()})
    return heads
