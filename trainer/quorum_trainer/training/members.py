"""What keeps K members that are trained together apart: each its own clip, learning rate and dropout.

    gradients (K, ...)  --clip_members-->  gradients  --AdamW-->  steps (K, ...)  --scale_steps-->  steps

Knows nothing of data or losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from quorum_model.folded import InputDropout
from quorum_trainer.training.draws import stream_seed


def clip_members(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip every member's gradient by its own norm, as if each were trained alone.

    Args:
        parameters: all stacked over members, (K, ...).
        max_norm: a member's largest gradient norm.

    Returns:
        The norms before clipping, (K,).
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    each = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
    norms: Tensor = torch.linalg.vector_norm(torch.stack(each), dim=0)
    # As torch.nn.utils.clip_grad_norm_ does it, so that one member equals one model.
    factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))
    return norms


def spread_factors(num_members: int, spread: float) -> list[float]:
    """Factors from 1 / spread to spread, evenly in their logarithm; 1 for a single member."""
    if num_members == 1:
        return [1.0]
    return [float(spread ** (2 * member / (num_members - 1) - 1)) for member in range(num_members)]


def spread_offsets(num_members: int, spread: float) -> list[float]:
    """Offsets from -spread to spread, evenly; 0 for a single member."""
    if num_members == 1:
        return [0.0]
    return [spread * (2 * member / (num_members - 1) - 1) for member in range(num_members)]


def scale_steps(parameters: Iterable[nn.Parameter], before: Iterable[Tensor], factors: Tensor) -> None:
    """Let every member have taken `factor` times the step it took.

    AdamW's step, weight decay included, is proportional to the learning rate and nothing else in it depends on the
    rate: this is a learning rate a member under one optimiser.

    Args:
        parameters: stacked over members, (K, ...) each, after the step.
        before: the same before it.
        factors: (K,).
    """
    for parameter, old in zip(parameters, before, strict=True):
        factor = factors.to(parameter).view(-1, *[1] * (parameter.dim() - 1))
        parameter.data = old + factor * (parameter.data - old)


class MemberDropout:
    """Dropout on adapters' inputs, each member from its own stream, so that K together equal each alone.

    A mask is a function of member, layer, step and part of the step alone, drawn token by token: it does not depend on
    the members beside it or on how long the row is, is the same when activations are recomputed, and a resumed run
    draws it again.

    Args:
        probabilities: of a zero, one a member.
        seeds: one a member.
    """

    def __init__(self, probabilities: Sequence[float], seeds: Sequence[int]) -> None:
        self._probabilities = list(probabilities)
        self._seeds = list(seeds)
        self._place = (0, 0)

    def at(self, step: int, part: int = 0) -> None:
        """Say which step, and which part of its pairs, the next forward pass belongs to."""
        self._place = (step, part)

    def of_layer(self, name: str) -> InputDropout:
        """The dropout of one layer."""

        def drop(x: Tensor, members: slice) -> Tensor:
            masks = [
                self._mask(name, seed, probability, x)
                for seed, probability in zip(self._seeds[members], self._probabilities[members], strict=True)
            ]
            return x * torch.stack(masks)

        return drop

    def _mask(self, layer: str, seed: int, probability: float, x: Tensor) -> Tensor:
        """(T, d): zero, or what keeps the mean."""
        # Drawn where it is used: carried over from the CPU, masks would take longer than the layers they are for.
        generator = torch.Generator(x.device).manual_seed(stream_seed(seed, "dropout", layer, *self._place))
        kept = torch.rand(x.shape[1:], generator=generator, device=x.device) >= probability
        return kept.to(x) / (1.0 - probability)
