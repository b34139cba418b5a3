"""One phase of training: K members in one folded pass, each with its own loss, clip and random stream.

    rows  --EnsembleModel-->  scores (K, 2P)  --losses-->  (K,)  --sum, backward-->  clip a member  --AdamW-->  step

Equal to K separate trainings with the same seeds, orders and clips: the loss is a sum over members, AdamW is
elementwise, and everything else is done a member at a time. Knows nothing of files or configs on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quorum_client.errors import QuorumError
from quorum_model.model import EnsembleModel
from quorum_model.packing import plan_batches
from quorum_trainer.batches import endless_order, num_steps, step_rows
from quorum_trainer.config import Optimisation
from quorum_trainer.data import EncodedPair
from quorum_trainer.losses import bradley_terry, centring
from quorum_trainer.members import clip_members

OnStep = Callable[[int, int, list[float]], None]
"""Called after each step with (step, steps in all, each member's loss)."""


class TrainingDiverged(QuorumError):
    """A loss is NaN or infinite: nothing of this run is worth saving."""

    code = "training_diverged"


@dataclass(frozen=True, slots=True)
class Trainables:
    """What a phase trains.

    members: the adapters of phase 2, stacked over members, (K, ...).
    heads: the heads, stacked likewise; apart, because they may have a learning rate of their own.
    shared: parameters that all members share, trained on the mean of their losses (phase 1).
    """

    members: list[nn.Parameter]
    heads: list[nn.Parameter]
    shared: list[nn.Parameter] = field(default_factory=list)

    def require_grad(self) -> None:
        """Let gradients reach exactly these parameters."""
        for parameter in [*self.members, *self.heads, *self.shared]:
            parameter.requires_grad_(True)


def trainables_of(model: EnsembleModel, *, backbone: bool) -> Trainables:
    """Heads and adapters of a model (adapters that are one for all members count as shared), and its backbone."""
    model.requires_grad_(False)
    adapters = [parameter for layer in model.folded.values() for parameter in (layer.a, layer.b)]
    own = model.num_adapters == model.num_members
    shared = list(model.backbone.body.parameters()) if backbone else [] if own else adapters
    members = adapters if own else []
    found = Trainables(members, list(model.heads.parameters()), shared)
    found.require_grad()
    return found


def schedule_factor(step: int, total: int, options: Optimisation) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then constant, linear or cosine decay to zero."""
    warmup = math.ceil(total * options.warmup)
    if step < warmup:
        return (step + 1) / warmup
    if options.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    return 1.0 - progress if options.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(trainables: Trainables, options: Optimisation) -> torch.optim.AdamW:
    """AdamW over stacked parameters: elementwise, so one is K."""
    body = [*trainables.members, *trainables.shared]
    groups = [
        {"params": body, "lr": options.lr},
        {"params": trainables.heads, "lr": options.head_lr or options.lr},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=options.weight_decay)


def train_phase(
    model: EnsembleModel,
    trainables: Trainables,
    pairs: Sequence[EncodedPair],
    options: Optimisation,
    *,
    order_seeds: list[int],
    gamma: float,
    on_step: OnStep | None = None,
) -> list[list[float]]:
    """Train one phase.

    Args:
        model: trained in place; its backbone stays in eval mode (no dropout but the adapters' own).
        trainables: what gradients reach.
        pairs: the training pairs.
        options: of this phase.
        order_seeds: one for an order that all members share, or one a member.
        gamma: weight of the centring term.
        on_step: progress.

    Returns:
        Each step's loss a member, (steps, K); without the centring term.

    Raises:
        TrainingDiverged: a loss is NaN or infinite.
    """
    orders = [endless_order(len(pairs), seed) for seed in order_seeds]
    total = num_steps(len(pairs), options.batch_pairs, options.epochs)
    optimizer = make_optimizer(trainables, options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule_factor(step, total, options))
    history = []
    for step in range(total):
        rows = step_rows(orders, pairs, options.batch_pairs)
        losses = train_step(model, trainables, rows, optimizer, options.clip, gamma)
        scheduler.step()
        history.append(losses)
        if not all(math.isfinite(loss) for loss in losses):
            raise TrainingDiverged(f"step {step}: a member's loss is {losses}; lower the learning rate")
        if on_step is not None:
            on_step(step + 1, total, losses)
    return history


def train_step(
    model: EnsembleModel,
    trainables: Trainables,
    rows: list[list[list[int]]],
    optimizer: torch.optim.Optimizer,
    clip: float,
    gamma: float,
) -> list[float]:
    """One optimiser step; returns each member's Bradley-Terry loss before it."""
    optimizer.zero_grad(set_to_none=True)
    scores = model(rows)
    half = scores.shape[1] // 2
    chosen, rejected = scores[:, :half], scores[:, half:]
    preference = bradley_terry(chosen, rejected)
    loss = preference + gamma * centring(chosen, rejected)
    torch.autograd.backward(loss.sum())
    if trainables.shared:
        _mean_over_members(trainables.shared, model.num_members)
        torch.nn.utils.clip_grad_norm_(trainables.shared, clip)
    clip_members([*trainables.members, *trainables.heads], clip)
    optimizer.step()
    return [float(value) for value in preference.detach()]


def _mean_over_members(parameters: Iterable[nn.Parameter], num_members: int) -> None:
    """What all members share is trained on the mean of their losses, what is a member's own on its own loss."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(num_members)


def score_pairs(model: EnsembleModel, pairs: Sequence[EncodedPair], token_budget: int) -> tuple[Tensor, Tensor]:
    """Raw scores of both sides of every pair, without gradients.

    Returns:
        chosen (K, P), rejected (K, P).
    """
    sequences = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    scores = torch.empty(model.num_members, len(sequences), dtype=torch.float64)
    for batch in plan_batches([len(sequence) for sequence in sequences], token_budget):
        with torch.inference_mode():
            scores[:, batch] = model([[sequences[index] for index in batch]]).double().cpu()
    return scores[:, : len(pairs)], scores[:, len(pairs) :]
