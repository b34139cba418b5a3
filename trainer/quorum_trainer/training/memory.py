"""How much memory a run will take, said before it starts.

    config, backbone  --weights counted, one small step's activations measured-->  MemoryEstimate

Activations differ by architecture in ways that no formula keeps up with: a forward pass of a few tokens is run on the
real model, and what autograd saves is counted and scaled by the tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quorum_model.adapters import LoraWeights
from quorum_model.backbone import default_pooling, load_backbone
from quorum_model.model import EnsembleModel
from quorum_trainer.config import Optimisation, PhaseOne, PhaseTwo, TrainConfig
from quorum_trainer.data import EncodedPair
from quorum_trainer.training.batches import longest_batch
from quorum_trainer.training.draws import draw_adapter, draw_head
from quorum_trainer.training.phases import Start, add_dropout, require_packed
from quorum_trainer.training.precision import autocast_dtype, load_for_training
from quorum_trainer.training.step import trainables_of

_PROBE_TOKENS = 64
_GB = 1e9


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes of one stage.

    weights: of the backbone, where it is frozen. trained: parameters, gradients and AdamW's two moments of what is
    trained, and the copies that an anchor, a spread of rates and early stopping keep. activations: of the largest batch
    that could be drawn.
    """

    stage: str
    weights: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        """All at once, as at the end of a forward pass."""
        return self.weights + self.trained + self.activations


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """stages: in their order. available: bytes that the device has free; None where nobody can say."""

    stages: list[StageMemory]
    available: int | None

    def lines(self) -> list[str]:
        """For a person; the last one warns where it will not fit."""
        said = [
            f"memory, {stage.stage}: {stage.total / _GB:.2f} GB (backbone {stage.weights / _GB:.2f}, trained "
            f"{stage.trained / _GB:.2f}, activations of the largest batch {stage.activations / _GB:.2f})"
            for stage in self.stages
        ]
        largest = max(stage.total for stage in self.stages)
        if self.available is not None and largest > self.available:
            said.append(
                f"memory: the device has {self.available / _GB:.2f} GB free: lower micro_batch_pairs or "
                "members_at_once, or set gradient_checkpointing or dtype: bfloat16"
            )
        return said


def estimate_memory(
    config: TrainConfig, start: Start, pairs: Sequence[EncodedPair], device: torch.device
) -> MemoryEstimate:
    """Estimate every stage; loads the backbone once a stage and runs a few tokens through it."""
    stages = []
    if config.phase1 is not None:
        stages.append(_stage(config, start, pairs, device, config.phase1))
    if config.phase2 is not None:
        stages.append(_stage(config, start, pairs, device, config.phase2))
    stages.append(_export(config, start))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    return MemoryEstimate(stages, free)


def _export(config: TrainConfig, start: Start) -> StageMemory:
    """Measuring and exporting: the backbone, or each of `singles`, in float32."""
    parameters = sum(parameter.numel() for parameter in load_backbone(start.folder).model.parameters())
    copies = config.members if config.kind == "singles" else 1
    return StageMemory("export", 4 * parameters * copies, 0, 0)


def _stage(
    config: TrainConfig,
    start: Start,
    pairs: Sequence[EncodedPair],
    device: torch.device,
    options: PhaseOne | PhaseTwo,
) -> StageMemory:
    in_full = isinstance(options, PhaseOne) and options.method == "full"
    backbone = load_for_training(config, start.folder, device, in_full=in_full)
    backbone_bytes = sum(_bytes(parameter) for parameter in backbone.model.parameters())
    generator = torch.Generator().manual_seed(0)
    num_members = 1 if config.kind == "singles" else config.members
    adapters: list[dict[str, LoraWeights]] = []
    if isinstance(options, PhaseTwo):
        adapters = [draw_adapter(backbone, options.lora, generator)] * num_members
    elif options.method == "shared_adapter":
        adapters = [draw_adapter(backbone, options.lora, generator)]
    head = draw_head(backbone, generator, redraw_projection=False)
    pooling = config.pooling or start.pooling or default_pooling(backbone.model)
    model = EnsembleModel(backbone, adapters or None, [head] * num_members, pooling, adapter_dtype=torch.float32)
    trainables = trainables_of(model, backbone=in_full)
    require_packed(config, options, model)
    add_dropout(model, [options.lora.dropout] * max(1, len(adapters)), [0] * max(1, len(adapters)))
    trained = (4 + _copies(config, options)) * sum(_bytes(parameter) for parameter in trainables.all())
    own_rows = isinstance(options, PhaseTwo) and options.order == "own"
    saved = _saved_bytes(model, num_members if own_rows else 1, autocast_dtype(config) if in_full else None)
    name = "phase 2" if isinstance(options, PhaseTwo) else "a member" if config.kind == "singles" else "phase 1"
    tokens = longest_batch(pairs, _pairs_at_once(options))
    together = options.members_in_a_pass(num_members, device.type) if isinstance(options, PhaseTwo) else num_members
    share = together / num_members
    return StageMemory(name, 0 if in_full else backbone_bytes, trained, int(saved / _PROBE_TOKENS * tokens * share))


def _copies(config: TrainConfig, options: PhaseOne | PhaseTwo) -> int:
    """Of everything that is trained, beside what AdamW keeps."""
    spread_or_anchor = isinstance(options, PhaseTwo) or config.kind != "lora"
    kept = [bool(config.diversity.anchor), config.diversity.lr_spread != 1] if spread_or_anchor else []
    return sum([*kept, options.patience is not None])


def _pairs_at_once(options: Optimisation) -> int:
    return min(options.micro_batch_pairs or options.batch_pairs, options.batch_pairs)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _saved_bytes(model: EnsembleModel, num_rows: int, autocast: torch.dtype | None) -> int:
    """What autograd keeps of a forward pass of `_PROBE_TOKENS` tokens a row, each storage once, without parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = [index % model.backbone.vocab_size for index in range(_PROBE_TOKENS)]
    enabled = autocast is not None
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved),
        torch.autocast(model.device.type, autocast, enabled=enabled),
    ):
        scores = model([[ids]] * num_rows)
    assert scores.requires_grad
    return sum(kept.values())
