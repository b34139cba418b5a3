"""The stages of a recipe: phase 1, phase 2, one model of `singles`.

    Run, where it begins  --train_phase-->  StageResult, kept

Each draws what it needs from its own random streams, builds its model anew and trains it. Knows no recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quorum_model.adapters import AdapterState, LoraWeights
from quorum_model.backbone import Backbone, default_pooling
from quorum_model.model import EnsembleModel
from quorum_model.packing import Pooling
from quorum_trainer.config import ConfigError, Diversity, Optimisation, PhaseOne, PhaseTwo, TrainConfig
from quorum_trainer.data import EncodedPair
from quorum_trainer.training.batches import PairOrders, num_steps, weights_of
from quorum_trainer.training.draws import draw_adapter, draw_head, stream_seed
from quorum_trainer.training.loop import Surroundings, train_phase
from quorum_trainer.training.members import MemberDropout, spread_factors, spread_offsets
from quorum_trainer.training.precision import autocast_dtype, load_for_training
from quorum_trainer.training.stages import StageResult
from quorum_trainer.training.step import StepSettings, Trainables, anchored, trainables_of


@dataclass(frozen=True, slots=True)
class Start:
    """What a run starts from.

    folder: the backbone's. The rest comes from a bundle, where phase 2 starts from one: its shared adapter, merged
    before anything is trained; its heads, one a member; its pooling.
    """

    folder: Path
    shared_adapter: AdapterState | None = None
    heads: Sequence[Mapping[str, Tensor]] | None = None
    pooling: Pooling | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that is the same for all stages of a run."""

    config: TrainConfig
    start: Start
    pairs: Sequence[EncodedPair]
    around: Surroundings
    device: torch.device


def single(run: Run, head: Mapping[str, Tensor], member: int) -> StageResult:
    """One whole model: its own head, order and (by diversity) learning rate."""
    config = run.config
    assert config.phase1 is not None
    seed = config.member_seeds()[member]
    factor = spread_factors(config.members, config.diversity.lr_spread)[member]
    lrs = {"lr": config.phase1.lr * factor, "head_lr": (config.phase1.head_lr or config.phase1.lr) * factor}
    options = config.phase1.model_copy(update=lrs)
    order = (stream_seed(seed, "phase 1", "order"), False)
    diversity = config.diversity.model_copy(update={"lr_spread": 1.0})
    begin = StageResult([dict(head)])
    return phase_one(run, f"m{member:02d}", options, begin, order=order, diversity=diversity, seed=seed)


def phase_one(
    run: Run,
    stage: str,
    options: PhaseOne,
    begin: StageResult,
    *,
    order: tuple[int, bool],
    diversity: Diversity,
    seed: int | None = None,
) -> StageResult:
    """Heads in one data order, on a backbone that learns (or not) from the mean of their losses."""
    done = run.around.keeper.result(stage)
    if done is not None:
        return done
    config, full = run.config, options.method == "full"
    backbone = load_for_training(config, run.start.folder, run.device, in_full=full)
    adapters: list[dict[str, LoraWeights]] = []
    if options.method == "shared_adapter":
        adapters = [draw_adapter(backbone, options.lora, _stream(config.seed, "shared", "adapter"))]
    pooling = pooling_of(run, backbone)
    model = EnsembleModel(backbone, adapters or None, begin.heads, pooling, adapter_dtype=torch.float32)
    require_packed(config, options, model)
    dropout = add_dropout(model, [options.lora.dropout], [stream_seed(config.seed, "shared", "dropout")])
    trainables = trainables_of(model, backbone=full)
    seeds = [seed] if seed is not None else config.member_seeds()
    pairs = _of_phase(run.pairs, 1)
    orders = _orders(run, pairs, options, [order[0]], shared=order[1], bootstrap=diversity.bootstrap, seeds=seeds)
    settings = _settings(run, options, diversity, trainables, model.num_members, dropout, in_full=full)
    _train(run, stage, model, trainables, orders, options, settings, pairs)
    weights = None
    if full:
        weights = {name: value.detach().cpu().clone() for name, value in backbone.body.state_dict().items()}
    result = StageResult(_heads_of(model), _adapters_of(model), weights)
    run.around.keeper.finish(stage, result)
    return result


def phase_two(
    run: Run, options: PhaseTwo, heads: Sequence[Mapping[str, Tensor]], first: StageResult | None
) -> StageResult:
    """Every member's adapter and head on its own loss; the backbone is frozen."""
    done = run.around.keeper.result("phase 2")
    if done is not None:
        return done
    config, seeds = run.config, run.config.member_seeds()
    shared = shared_adapter_of(run, first)
    body = first.backbone if first is not None else None
    backbone = load_for_training(config, run.start.folder, run.device, shared_adapter=shared, weights=body)
    adapters = [draw_adapter(backbone, options.lora, _stream(seed, "member", "adapter")) for seed in seeds]
    pooling = pooling_of(run, backbone)
    model = EnsembleModel(backbone, adapters, list(heads), pooling, adapter_dtype=torch.float32)
    require_packed(config, options, model)
    offsets = spread_offsets(config.members, config.diversity.dropout_spread)
    rates = [options.lora.dropout + offset for offset in offsets]
    dropout = add_dropout(model, rates, [stream_seed(seed, "member", "dropout") for seed in seeds])
    trainables = trainables_of(model, backbone=False)
    is_shared = options.order == "shared"
    order_seeds = [stream_seed(seed, "phase 2", "order") for seed in seeds]
    if is_shared:
        order_seeds = [stream_seed(config.seed, "phase 2", "shared order")]
    pairs = _of_phase(run.pairs, 2)
    orders = _orders(
        run, pairs, options, order_seeds, shared=is_shared, bootstrap=config.diversity.bootstrap, seeds=seeds
    )
    settings = _settings(run, options, config.diversity, trainables, model.num_members, dropout)
    _train(run, "phase 2", model, trainables, orders, options, settings, pairs)
    result = StageResult(_heads_of(model), _adapters_of(model))
    run.around.keeper.finish("phase 2", result)
    return result


def first_heads(run: Run, backbone: Backbone) -> list[dict[str, Tensor]]:
    """A head a member: a bundle's, or drawn from the members' own streams."""
    if run.start.heads is not None:
        return [dict(head) for head in run.start.heads]
    redraw = run.config.phase1 is not None
    return [draw_head(backbone, _stream(seed, "head"), redraw_projection=redraw) for seed in run.config.member_seeds()]


def _stream(seed: int, *names: str) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(seed, *names))


def pooling_of(run: Run, backbone: Backbone) -> Pooling:
    """The config's, a bundle's, or the architecture's own."""
    return run.config.pooling or run.start.pooling or default_pooling(backbone.model)


def _of_phase(pairs: Sequence[EncodedPair], phase: int) -> list[EncodedPair]:
    chosen = [pair for pair in pairs if pair.phase in (None, phase)]
    if not chosen:
        raise ConfigError(f"phase {phase} has no training pairs (data.phase, data.held_out)")
    return chosen


def _train(
    run: Run,
    stage: str,
    model: EnsembleModel,
    trainables: Trainables,
    orders: PairOrders,
    options: Optimisation,
    settings: StepSettings,
    pairs: Sequence[EncodedPair],
) -> None:
    total = num_steps(weights_of(pairs), options.batch_pairs, options.epochs)
    train_phase(model, trainables, orders, options, settings, total=total, stage=stage, around=run.around)


def _orders(
    run: Run,
    pairs: Sequence[EncodedPair],
    options: Optimisation,
    order_seeds: list[int],
    *,
    shared: bool,
    bootstrap: bool,
    seeds: list[int],
) -> PairOrders:
    if options.batch_pairs % run.around.workers.num:
        raise ConfigError(f"batch_pairs: {options.batch_pairs} pairs cannot be shared by {run.around.workers.num}")
    draws = [stream_seed(seed, "bootstrap") for seed in seeds] if bootstrap else None
    margins = run.config.loss.margins
    return PairOrders(
        pairs, order_seeds, shared=shared, batch_pairs=options.batch_pairs, bootstrap_seeds=draws, margins=margins
    )


def _settings(
    run: Run,
    options: Optimisation,
    diversity: Diversity,
    trainables: Trainables,
    num_members: int,
    dropout: MemberDropout | None,
    *,
    in_full: bool = False,
) -> StepSettings:
    factors = torch.tensor(spread_factors(num_members, diversity.lr_spread)) if diversity.lr_spread != 1 else None
    first = [value.detach().clone() for value in anchored(trainables, num_members)] if diversity.anchor else []
    return StepSettings(
        clip=options.clip,
        loss=run.config.loss,
        micro_batch_pairs=options.micro_batch_pairs,
        members_at_once=(
            options.members_in_a_pass(num_members, run.device.type) if isinstance(options, PhaseTwo) else None
        ),
        anchor=diversity.anchor,
        nuclear_norm=diversity.nuclear_norm,
        first=first,
        step_factors=factors,
        dropout=dropout,
        autocast=autocast_dtype(run.config) if in_full else None,
    )


def add_dropout(model: EnsembleModel, rates: list[float], seeds: list[int]) -> MemberDropout | None:
    """Put dropout on the inputs of all adapters; None where there is none to put."""
    if not any(rates) or not model.folded:
        return None
    dropout = MemberDropout(rates, seeds)
    for name, layer in model.folded.items():
        layer.input_dropout = dropout.of_layer(name)
    return dropout


def require_packed(config: TrainConfig, options: PhaseOne | PhaseTwo, model: EnsembleModel) -> None:
    """Refuse what needs all members in one pass where they run one after another.

    Raises:
        ConfigError: adapter dropout or gradient checkpointing on a backbone that cannot be packed.
    """
    if model.attention == "packed":
        return
    if options.lora.dropout and model.folded:
        raise ConfigError("lora.dropout needs a backbone that can be packed; this one has attention of its own")
    if config.gradient_checkpointing:
        raise ConfigError(
            "gradient_checkpointing needs a backbone that can be packed; this one has attention of its own"
        )


def _heads_of(model: EnsembleModel) -> list[dict[str, Tensor]]:
    return [model.heads.member_state(member) for member in range(model.num_members)]


def _adapters_of(model: EnsembleModel) -> list[dict[str, LoraWeights]]:
    return [model.adapter_of(index) for index in range(model.num_adapters)] if model.folded else []


def shared_adapter_of(run: Run, first: StageResult | None) -> AdapterState | None:
    """Phase 1's, or the one that a bundle brought."""
    if first is not None and first.adapters:
        return AdapterState(first.adapters[0])
    return run.start.shared_adapter
