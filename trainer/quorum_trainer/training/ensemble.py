"""Training an ensemble from the first draw to the last step: one stage after another, each kept when it is done.

    single, linear      phase 1
    singles             m00, m01, …: phase 1 of one model each
    lora                phase 1 (or a bundle's backbone and heads, or none)  →  phase 2

Reads as the recipe. Knows nothing of data files, held-out figures or bundles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quorum_model.adapters import AdapterState, merge_adapter
from quorum_model.backbone import load_backbone
from quorum_model.model import EnsembleModel
from quorum_model.singles import SinglesModel
from quorum_trainer.config import ConfigError, Diversity, TrainConfig
from quorum_trainer.data import EncodedPair
from quorum_trainer.training.draws import stream_seed
from quorum_trainer.training.loop import Surroundings
from quorum_trainer.training.phases import (
    Run,
    Start,
    first_heads,
    phase_one,
    phase_two,
    pooling_of,
    shared_adapter_of,
    single,
)
from quorum_trainer.training.stages import StageResult


@dataclass(frozen=True, slots=True)
class TrainedEnsemble:
    """What a run gives.

    model: the trained ensemble, in float32. shared_adapter: already merged into the model's backbone.
    bodies: backbones that were trained in full, by parameter name: none, one, or (singles) one a member.
    """

    model: EnsembleModel | SinglesModel
    shared_adapter: AdapterState | None
    bodies: list[dict[str, Tensor]]


def train_ensemble(
    config: TrainConfig,
    start: Start,
    pairs: Sequence[EncodedPair],
    around: Surroundings | None = None,
    device: torch.device | None = None,
) -> TrainedEnsemble:
    """Train the members that a config describes.

    Args:
        config: checked.
        start: backbone, and what a bundle brings.
        pairs: training pairs, encoded for this backbone.
        around: checkpoints, reports, other workers, held-out pairs.
        device: where to train; the CPU if left out.

    Raises:
        ConfigError: the config does not fit the backbone or the data.
        TrainingDiverged: a loss became NaN or infinite.
        TrainingInterrupted: asked to stop.
    """
    run = Run(config, start, pairs, around or Surroundings(), device or torch.device("cpu"))
    heads = _heads_to_begin(run)
    if config.kind == "singles":
        results = [single(run, heads[member], member) for member in range(config.members)]
        models = [_assemble(run, result, None) for result in results]
        return TrainedEnsemble(SinglesModel(models), None, [result.backbone or {} for result in results])
    first: StageResult | None = None
    if config.phase1 is not None:
        seed = stream_seed(config.seed, "phase 1", "order")
        own = Diversity() if config.kind == "lora" else config.diversity
        first = phase_one(run, "phase 1", config.phase1, StageResult(heads), order=(seed, True), diversity=own)
        heads = first.heads
    last = first if config.phase2 is None else phase_two(run, config.phase2, heads, first)
    assert last is not None
    bodies = [first.backbone] if first is not None and first.backbone is not None else []
    return TrainedEnsemble(_assemble(run, last, first), shared_adapter_of(run, first), bodies)


def _heads_to_begin(run: Run) -> list[dict[str, Tensor]]:
    """One a member; the backbone that they are drawn for is let go again."""
    backbone = load_backbone(run.start.folder)
    if backbone.max_positions is not None and run.config.max_length > backbone.max_positions:
        raise ConfigError(f"max_length: this backbone has positions for {backbone.max_positions} tokens")
    return first_heads(run, backbone)


def _assemble(run: Run, last: StageResult, first: StageResult | None) -> EnsembleModel:
    """The trained ensemble as it will be served: in float32, without dropout, whatever it was trained in."""
    backbone = load_backbone(run.start.folder)
    shared = shared_adapter_of(run, first)
    if shared is not None:
        merge_adapter(backbone.model, shared)
    body = last.backbone or (first.backbone if first is not None else None)
    if body is not None:
        backbone.body.load_state_dict(body)
    backbone.model.to(run.device)
    # Of phase 1 the adapter is merged by now; of phase 2 they are the members' own.
    adapters = last.adapters if run.config.phase2 is not None else []
    model = EnsembleModel(backbone, adapters or None, last.heads, pooling_of(run, backbone))
    return model.eval().requires_grad_(False)
