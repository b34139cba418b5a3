"""One optimiser step: the losses of a batch, their gradients, each member's clip.

    Batch  --forward, some pairs and some members at a time-->  losses (K,)  --backward-->  gradients  --clip, AdamW-->

How the batch is divided changes memory and not the result (but for adapters' dropout, whose masks are drawn anew for
every part). Knows nothing of phases, orders or schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quorum_model.model import EnsembleModel
from quorum_trainer.config import LossOptions
from quorum_trainer.training.batches import Batch
from quorum_trainer.training.losses import anchor, centring, nuclear_norm_ratio, preference
from quorum_trainer.training.members import MemberDropout, clip_members, scale_steps
from quorum_trainer.training.workers import OneWorker, Workers


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

    def own(self) -> list[nn.Parameter]:
        """What each member has for itself, stacked over members."""
        return [*self.members, *self.heads]

    def all(self) -> list[nn.Parameter]:
        """Everything, in a fixed order."""
        return [*self.members, *self.shared, *self.heads]


@dataclass(frozen=True, slots=True)
class StepSettings:
    """How a step is taken.

    clip: gradient norm, a member's. loss: of a pair. micro_batch_pairs, members_at_once: how much is held in memory.
    anchor, nuclear_norm: weights of the terms in `losses`. first: own parameters when the phase began, for the anchor.
    step_factors: (K,) factors of the members' steps, their learning rates'; None where all are one.
    dropout: of the adapters. autocast: dtype in which a trained backbone computes.
    """

    clip: float = 1.0
    loss: LossOptions = field(default_factory=LossOptions)
    micro_batch_pairs: int | None = None
    members_at_once: int | None = None
    anchor: float = 0.0
    nuclear_norm: float = 0.0
    first: list[Tensor] = field(default_factory=list)
    step_factors: Tensor | None = None
    dropout: MemberDropout | None = None
    autocast: torch.dtype | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """losses: each member's preference loss before the step. gradient_norms: each member's, before clipping.

    shared_norm: of what members share, before clipping; 0 where they share nothing.
    """

    losses: list[float]
    gradient_norms: list[float]
    shared_norm: float = 0.0


def trainables_of(model: EnsembleModel, *, backbone: bool) -> Trainables:
    """Heads and adapters of a model (adapters that are one for all members count as shared), and its backbone."""
    model.requires_grad_(False)
    adapters = [parameter for layer in model.folded.values() for parameter in (layer.a, layer.b)]
    own = model.num_adapters == model.num_members
    shared = list(model.backbone.body.parameters()) if backbone else [] if own else adapters
    found = Trainables(adapters if own else [], list(model.heads.parameters()), shared)
    for parameter in found.all():
        parameter.requires_grad_(True)
    return found


def anchored(trainables: Trainables, num_members: int) -> list[Tensor]:
    """What each member is anchored by, (K, ...): its own parameters; of a single model the backbone too."""
    shared = [parameter[None] for parameter in trainables.shared] if num_members == 1 else []
    return [*trainables.own(), *shared]


def train_step(
    model: EnsembleModel,
    trainables: Trainables,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    settings: StepSettings,
    workers: Workers | None = None,
    step: int = 0,
) -> StepResult:
    """One optimiser step.

    Args:
        model: trained in place.
        trainables: what gradients reach.
        batch: this worker's share of the pairs.
        optimizer: over `trainables`.
        settings: see there.
        workers: those that hold the other shares.
        step: its number, for dropout.
    """
    workers = workers or OneWorker()
    optimizer.zero_grad(set_to_none=True)
    losses = torch.zeros(model.num_members)
    for index, part in enumerate(_parts(batch, settings.micro_batch_pairs)):
        if settings.dropout is not None:
            settings.dropout.at(step, index * workers.num + workers.index)
        for members in _groups(model.num_members, settings.members_at_once):
            losses[members] += _backward(model, part, members, batch.num_pairs, settings)
    _backward_of_terms(model, trainables, settings)
    workers.mean_([losses, *(p.grad for p in trainables.all() if p.grad is not None)])
    norms, shared_norm = _clip(trainables, model.num_members, settings.clip)
    _take(optimizer, trainables, settings.step_factors)
    return StepResult([float(loss) for loss in losses], [float(norm) for norm in norms], shared_norm)


def _parts(batch: Batch, pairs: int | None) -> Iterator[Batch]:
    size = pairs or batch.num_pairs
    for start in range(0, batch.num_pairs, size):
        yield batch.part(slice(start, start + size)) if size < batch.num_pairs else batch


def _groups(num_members: int, at_once: int | None) -> Iterator[slice]:
    size = at_once or num_members
    for start in range(0, num_members, size):
        yield slice(start, min(start + size, num_members))


def _backward(model: EnsembleModel, part: Batch, members: slice, num_pairs: int, settings: StepSettings) -> Tensor:
    """Gradients of some members on some pairs; returns their share of the preference losses."""
    rows = part.rows if len(part.rows) == 1 else part.rows[members]
    with _computing_in(settings.autocast, model.device):
        scores = model(rows, members)
    terms = part.terms.rows(members).to(scores)
    half = scores.shape[1] // 2
    chosen, rejected = scores[:, :half], scores[:, half:]
    cost = preference(chosen, rejected, terms, label_smoothing=settings.loss.label_smoothing) / num_pairs
    loss = cost + settings.loss.centring * centring(chosen, rejected, terms) / num_pairs
    torch.autograd.backward(loss.sum())
    return cost.detach().float().cpu()


def _computing_in(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[None]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _backward_of_terms(model: EnsembleModel, trainables: Trainables, settings: StepSettings) -> None:
    """Terms that depend on the parameters alone."""
    if settings.anchor:
        torch.autograd.backward(settings.anchor * anchor(anchored(trainables, model.num_members), settings.first).sum())
    if settings.nuclear_norm:
        ratio = nuclear_norm_ratio([layer.a for layer in model.folded.values()])
        torch.autograd.backward(-settings.nuclear_norm * ratio)


def _clip(trainables: Trainables, num_members: int, max_norm: float) -> tuple[Tensor, float]:
    """What all members share is trained on the mean of their losses, what is a member's own on its own loss.

    A single model is clipped as one.
    """
    if num_members == 1:
        return torch.nn.utils.clip_grad_norm_(trainables.all(), max_norm).reshape(1), 0.0
    for parameter in trainables.shared:
        if parameter.grad is not None:
            parameter.grad.div_(num_members)
    shared_norm = torch.nn.utils.clip_grad_norm_(trainables.shared, max_norm) if trainables.shared else 0.0
    return clip_members(trainables.own(), max_norm), float(shared_norm)


def _take(optimizer: torch.optim.Optimizer, trainables: Trainables, factors: Tensor | None) -> None:
    own = trainables.own()
    before = [parameter.detach().clone() for parameter in own] if factors is not None else []
    step: Callable[[], object] = optimizer.step
    step()
    if factors is not None:
        scale_steps(own, before, factors)
