"""Training an ensemble from the first draw to the last step: phase 1, phase 2, and what lies between.

    TrainConfig, pairs  --phase 1-->  heads (+ backbone or shared adapter)  --phase 2-->  TrainedEnsemble

Reads as the recipe: one function a phase. Knows nothing of data files, held-out figures or bundles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quorum_model.adapters import AdapterState, merge_adapter
from quorum_model.backbone import Backbone, default_pooling, load_backbone
from quorum_model.model import EnsembleModel
from quorum_model.packing import Pooling
from quorum_trainer.config import ConfigError, PhaseOne, PhaseTwo, TrainConfig
from quorum_trainer.data import EncodedPair
from quorum_trainer.loop import OnStep, train_phase, trainables_of
from quorum_trainer.members import MemberDropout, draw_adapter, draw_head, stream_seed

OnPhase = Callable[[str], OnStep | None]
"""Called with a phase's name when it starts; gives what to call after each of its steps."""


@dataclass(frozen=True, slots=True)
class TrainedEnsemble:
    """What a run gives.

    model: the trained ensemble. shared_adapter: phase 1's, already merged into the model's backbone.
    backbone_weights: the backbone as phase 1 left it, where it trained it in full.
    """

    model: EnsembleModel
    shared_adapter: AdapterState | None
    backbone_weights: dict[str, Tensor] | None


@dataclass(slots=True)
class _PhaseOneResult:
    heads: list[Mapping[str, Tensor]]
    shared_adapter: AdapterState | None
    backbone_weights: dict[str, Tensor] | None


def train_ensemble(
    config: TrainConfig, folder: Path, pairs: Sequence[EncodedPair], on_phase: OnPhase | None = None
) -> TrainedEnsemble:
    """Train the members that a config describes.

    Args:
        config: checked.
        folder: the backbone's.
        pairs: training pairs, encoded for this backbone.
        on_phase: progress.

    Raises:
        TrainingDiverged: a loss became NaN or infinite.
    """
    notify = on_phase or (lambda _name: None)
    backbone = load_backbone(folder)
    _check_dropout(config, backbone)
    if backbone.max_positions is not None and config.max_length > backbone.max_positions:
        raise ConfigError(f"max_length: this backbone has positions for {backbone.max_positions} tokens")
    pooling = config.pooling or default_pooling(backbone.model)
    heads: list[Mapping[str, Tensor]] = [
        draw_head(backbone, _stream(seed, "head"), redraw_projection=config.phase1 is not None)
        for seed in config.member_seeds()
    ]
    first: _PhaseOneResult | None = None
    if config.phase1 is not None:
        first = _phase_one(config, config.phase1, folder, (heads, pooling), _of_phase(pairs, 1), notify("phase 1"))
        heads = first.heads
        backbone = _backbone_after(folder, first)
    if config.phase2 is not None:
        model = _start_phase_two(config, config.phase2, backbone, heads, pooling)
        _phase_two(config, config.phase2, model, _of_phase(pairs, 2), notify("phase 2"))
    else:
        model = EnsembleModel(backbone, None, heads, pooling)
    model.eval().requires_grad_(False)
    return TrainedEnsemble(
        model,
        shared_adapter=first.shared_adapter if first is not None else None,
        backbone_weights=first.backbone_weights if first is not None else None,
    )


def _stream(seed: int, *names: str) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(seed, *names))


def _check_dropout(config: TrainConfig, backbone: Backbone) -> None:
    dropout = [phase.lora.dropout for phase in (config.phase1, config.phase2) if phase is not None]
    if any(dropout) and not type(backbone.body)._can_set_attn_implementation():
        raise ConfigError("adapter dropout needs a backbone that can be packed; this one has attention of its own")


def _of_phase(pairs: Sequence[EncodedPair], phase: int) -> list[EncodedPair]:
    chosen = [pair for pair in pairs if pair.phase in (None, phase)]
    if not chosen:
        raise ConfigError(f"phase {phase} has no training pairs (data.phase, data.held_out)")
    return chosen


def _phase_one(
    config: TrainConfig,
    options: PhaseOne,
    folder: Path,
    start: tuple[list[Mapping[str, Tensor]], Pooling],
    pairs: Sequence[EncodedPair],
    on_step: OnStep | None,
) -> _PhaseOneResult:
    """K heads together in one data order, on a backbone that learns (or not) from the mean of their losses."""
    heads, pooling = start
    backbone = load_backbone(folder)
    adapters = None
    if options.method == "shared_adapter":
        adapters = [draw_adapter(backbone, options.lora, _stream(config.seed, "shared", "adapter"))]
    model = EnsembleModel(backbone, adapters, heads, pooling)
    _add_dropout(model, options.lora.dropout, [stream_seed(config.seed, "shared", "dropout")])
    train_phase(
        model,
        trainables_of(model, backbone=options.method == "full"),
        pairs,
        options,
        order_seeds=[stream_seed(config.seed, "phase 1", "order")],
        gamma=config.centring,
        on_step=on_step,
    )
    return _PhaseOneResult(
        heads=[model.heads.member_state(member) for member in range(config.members)],
        shared_adapter=AdapterState(model.adapter_of(0)) if adapters else None,
        backbone_weights=_weights(backbone) if options.method == "full" else None,
    )


def _weights(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in backbone.body.state_dict().items()}


def _backbone_after(folder: Path, first: _PhaseOneResult) -> Backbone:
    """A backbone as phase 1 left it: loaded anew, so that no folded layer of phase 1 remains in it."""
    backbone = load_backbone(folder)
    if first.shared_adapter is not None:
        merge_adapter(backbone.model, first.shared_adapter)
    if first.backbone_weights is not None:
        backbone.body.load_state_dict(first.backbone_weights)
    return backbone


def _start_phase_two(
    config: TrainConfig, options: PhaseTwo, backbone: Backbone, heads: list[Mapping[str, Tensor]], pooling: Pooling
) -> EnsembleModel:
    seeds = config.member_seeds()
    adapters = [draw_adapter(backbone, options.lora, _stream(seed, "member", "adapter")) for seed in seeds]
    model = EnsembleModel(backbone, adapters, heads, pooling)
    _add_dropout(model, options.lora.dropout, [stream_seed(seed, "member", "dropout") for seed in seeds])
    return model


def _phase_two(
    config: TrainConfig,
    options: PhaseTwo,
    model: EnsembleModel,
    pairs: Sequence[EncodedPair],
    on_step: OnStep | None,
) -> None:
    """Every member's adapter and head on its own loss; the backbone is frozen."""
    orders = [stream_seed(seed, "phase 2", "order") for seed in config.member_seeds()]
    if options.order == "shared":
        orders = [stream_seed(config.seed, "phase 2", "shared order")]
    train_phase(
        model,
        trainables_of(model, backbone=False),
        pairs,
        options,
        order_seeds=orders,
        gamma=config.centring,
        on_step=on_step,
    )
    for layer in model.folded.values():
        layer.input_dropout = None


def _add_dropout(model: EnsembleModel, probability: float, seeds: list[int]) -> None:
    if not probability:
        return
    if model.attention != "packed":
        raise ConfigError("adapter dropout is only supported on backbones that can be packed")
    dropout = MemberDropout(probability, seeds)
    for layer in model.folded.values():
        layer.input_dropout = dropout
