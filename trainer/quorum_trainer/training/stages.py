"""What a stage of a run leaves behind: heads, adapters, a trained backbone; as tensors by name, and back.

    StageResult  <-->  {"head.0.classifier.weight": …, "adapter.1.a.<module>": …, "backbone.<parameter>": …}

A stage is phase 1, phase 2, or one member of `singles`. Knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quorum_model.adapters import LoraWeights

_PARTS = ("a", "b", "scaling")


@dataclass(frozen=True, slots=True)
class StageResult:
    """heads: a state a member. adapters: none, one for all members, or one a member. backbone: where it was trained."""

    heads: list[dict[str, Tensor]]
    adapters: list[dict[str, LoraWeights]] = field(default_factory=list)
    backbone: dict[str, Tensor] | None = None

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything by name; no two tensors share memory."""
        tensors = {f"head.{k}.{name}": value for k, head in enumerate(self.heads) for name, value in head.items()}
        for k, adapter in enumerate(self.adapters):
            for module, lora in adapter.items():
                parts = (lora.a, lora.b, torch.tensor(lora.scaling, dtype=torch.float64))
                tensors |= {f"adapter.{k}.{part}.{module}": value for part, value in zip(_PARTS, parts, strict=True)}
        tensors |= {f"backbone.{name}": value for name, value in (self.backbone or {}).items()}
        return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> StageResult:
        """The inverse of `to_tensors`."""
        heads: list[dict[str, Tensor]] = []
        for (index, name), value in _numbered(tensors, "head."):
            heads += [{} for _ in range(index + 1 - len(heads))]
            heads[index][name] = value
        found: list[dict[str, dict[str, Tensor]]] = []
        for (index, name), value in _numbered(tensors, "adapter."):
            part, _, module = name.partition(".")
            found += [{} for _ in range(index + 1 - len(found))]
            found[index].setdefault(module, {})[part] = value
        adapters = [
            {module: LoraWeights(p["a"], p["b"], float(p["scaling"])) for module, p in one.items()} for one in found
        ]
        prefix = "backbone."
        backbone = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        return cls(heads, adapters, backbone or None)


def _numbered(tensors: Mapping[str, Tensor], prefix: str) -> Sequence[tuple[tuple[int, str], Tensor]]:
    found = []
    for key, value in tensors.items():
        if key.startswith(prefix):
            number, _, name = key.removeprefix(prefix).partition(".")
            found.append(((int(number), name), value))
    return found
