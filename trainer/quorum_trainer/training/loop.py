"""One phase of training: K members in one folded pass, each with its own loss, clip and random stream.

    Batch  --EnsembleModel-->  scores (K, 2P)  --losses-->  (K,)  --sum, backward-->  clip a member  --AdamW-->  step

Equal to K separate trainings with the same seeds, orders and clips: the loss is a sum over members, AdamW is
elementwise, and everything else is done a member at a time. Knows nothing of files or configs on disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from quorum_client.errors import QuorumError
from quorum_model.model import EnsembleModel
from quorum_trainer.config import Optimisation
from quorum_trainer.config.phases import Schedule
from quorum_trainer.data import EncodedPair
from quorum_trainer.training.batches import PairOrders
from quorum_trainer.training.held_out import HeldOut, look
from quorum_trainer.training.keeper import Keeper, KeepNothing, Snapshot
from quorum_trainer.training.reports import Evaluation, Reporter, Silent, StepReport
from quorum_trainer.training.step import StepSettings, Trainables, train_step
from quorum_trainer.training.workers import OneWorker, Workers


class TrainingDiverged(QuorumError):
    """A loss or gradient is NaN or infinite: nothing of this run is worth saving."""

    code = "training_diverged"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run has around its arithmetic. held_out: pairs to look at between steps; none where empty."""

    keeper: Keeper = field(default_factory=KeepNothing)
    reporter: Reporter = field(default_factory=Silent)
    workers: Workers = field(default_factory=OneWorker)
    held_out: Sequence[EncodedPair] = ()


class Scheduled(Protocol):
    """What says how a learning rate runs. warmup: share of the steps."""

    @property
    def schedule(self) -> Schedule: ...  # noqa: D102
    @property
    def warmup(self) -> float: ...  # noqa: D102


def schedule_factor(step: int, total: int, options: Scheduled) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then constant, linear or cosine decay to zero."""
    warmup = math.ceil(round(total * options.warmup, 9))  # 140 steps times the float nearest to 0.05 are 7
    if step < warmup:
        return (step + 1) / warmup
    if options.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    return 1.0 - progress if options.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(trainables: Trainables, options: Optimisation) -> torch.optim.AdamW:
    """AdamW over stacked parameters: elementwise, so one is K.

    As in Transformers' Trainer, biases and norms, which are vectors, do not decay.
    """
    sets = [(trainables.members, True, options.lr), (trainables.shared, False, options.lr)]
    sets.append((trainables.heads, True, options.head_lr or options.lr))
    groups = []
    for parameters, is_stacked, rate in sets:
        for decays in (True, False):
            chosen = [p for p in parameters if (p.dim() - is_stacked >= 2) is decays]
            decay = options.weight_decay if decays else 0.0
            groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW([group for group in groups if group["params"]])


def train_phase(
    model: EnsembleModel,
    trainables: Trainables,
    orders: PairOrders,
    options: Optimisation,
    settings: StepSettings,
    *,
    total: int,
    stage: str = "phase",
    around: Surroundings | None = None,
) -> list[list[float]]:
    """Train one phase.

    Args:
        model: trained in place; its backbone stays in eval mode (no dropout but the adapters' own).
        trainables: what gradients reach.
        orders: the batches.
        options: of this phase.
        settings: of one step.
        total: steps.
        stage: its name in checkpoints and reports.
        around: checkpoints, reports, other workers, held-out pairs.

    Returns:
        Each step's loss a member, (steps done here, K); without centring and other terms.

    Raises:
        TrainingDiverged: a loss or gradient is NaN or infinite.
        TrainingInterrupted: asked to stop; a checkpoint was written.
    """
    around = around or Surroundings()
    progress = _Progress(trainables, make_optimizer(trainables, options))
    snapshot = around.keeper.resume(stage)
    if snapshot is not None:
        progress.restore(snapshot)
        orders.skip(progress.step)
    around.workers.any(False)  # all have read what was kept before anyone can finish this stage and put it away
    around.reporter.begin(stage, total, progress.step)
    peaks = [float(group["lr"]) for group in progress.optimizer.param_groups]
    every = _steps_between_looks(options, total)
    history = []
    while progress.step < total and not progress.stopped:
        factor = schedule_factor(progress.step, total, options)
        for group, peak in zip(progress.optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        batch = orders.next(around.workers.index, around.workers.num)
        result = train_step(model, trainables, batch, progress.optimizer, settings, around.workers, progress.step)
        progress.step += 1
        if not all(math.isfinite(value) for value in [*result.losses, *result.gradient_norms, result.shared_norm]):
            raise TrainingDiverged(
                f"{stage}, step {progress.step}: a member's loss or gradient is not finite (losses {result.losses}); "
                "lower the learning rate"
            )
        history.append(result.losses)
        around.reporter.step(
            StepReport(stage, progress.step, total, result.losses, result.gradient_norms, options.lr * factor)
        )
        if every is not None and around.held_out and (progress.step % every == 0 or progress.step == total):
            seen = _look_together(model, around)
            progress.judge(seen, options.patience)
            around.reporter.evaluated(Evaluation(stage, progress.step, seen.loss, seen.accuracy))
        around.keeper.offer(stage, progress.snapshot, stop=around.workers.any(around.keeper.is_asked_to_stop()))
    progress.go_back_to_best()
    return history


def _look_together(model: EnsembleModel, around: Surroundings) -> HeldOut:
    """What all workers saw, averaged: rounding must not let one of them stop alone."""
    seen = look(model, around.held_out)
    both = torch.tensor([seen.loss, seen.accuracy], dtype=torch.float64)
    around.workers.mean_([both])
    return HeldOut(float(both[0]), float(both[1]))


def _steps_between_looks(options: Optimisation, total: int) -> int | None:
    if options.evaluate_every is None:
        return None
    return max(1, round(total * options.evaluate_every / options.epochs))


class _Progress:
    """Where a phase stands: parameters, optimiser, step, and the best that was seen."""

    def __init__(self, trainables: Trainables, optimizer: torch.optim.AdamW) -> None:
        self._parameters = trainables.all()
        self.optimizer = optimizer
        self.step = 0
        self.stopped = False
        self._best: list[torch.Tensor] = []
        self._best_loss = math.inf
        self._looks_since_best = 0

    def judge(self, seen: HeldOut, patience: int | None) -> None:
        """Remember the best state, and stop after `patience` looks without a better one."""
        if patience is None:
            return
        if seen.loss < self._best_loss:
            self._best_loss, self._looks_since_best = seen.loss, 0
            self._best = [parameter.detach().clone() for parameter in self._parameters]
        else:
            self._looks_since_best += 1
            self.stopped = self._looks_since_best >= patience

    def go_back_to_best(self) -> None:
        """The best state that was looked at, where any was."""
        for parameter, best in zip(self._parameters, self._best, strict=False):
            parameter.data.copy_(best)

    def snapshot(self) -> Snapshot:
        """Everything that a resumed phase needs to go on as if nothing had happened."""
        tensors = {}
        for index, parameter in enumerate(self._parameters):
            tensors[f"parameter.{index}"] = parameter.detach()
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{key}.{index}"] = value
        tensors |= {f"best.{index}": best for index, best in enumerate(self._best)}
        numbers = {
            "step": self.step,
            "stopped": int(self.stopped),
            "best_loss": self._best_loss,
            "looks_since_best": self._looks_since_best,
        }
        return Snapshot(tensors, numbers)

    def restore(self, snapshot: Snapshot) -> None:
        """Take up a snapshot of the same phase."""
        tensors, numbers = snapshot.tensors, snapshot.numbers
        for index, parameter in enumerate(self._parameters):
            parameter.data.copy_(tensors[f"parameter.{index}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            state = {key: tensors[f"{key}.{index}"] for key in keys if f"{key}.{index}" in tensors}
            if state:
                moments = {key: value.to(parameter.device) for key, value in state.items() if key != "step"}
                self.optimizer.state[parameter] = {"step": state["step"], **moments}
        if "best.0" in tensors:
            self._best = [
                tensors[f"best.{index}"].to(parameter.device) for index, parameter in enumerate(self._parameters)
            ]
        self.step, self.stopped = int(numbers["step"]), bool(numbers["stopped"])
        self._best_loss, self._looks_since_best = float(numbers["best_loss"]), int(numbers["looks_since_best"])
