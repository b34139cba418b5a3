"""Losses of a minibatch, pure: log-probabilities and values in, a scalar out.

Shapes: `B` completions, `R` tokens of the longest one; `weights` (B, R) says how much a token counts and sums to one
over a whole minibatch, so that parts of a minibatch add up to it. A mask is True for a completion's own tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """loss: a scalar to descend. clipped: share of the tokens whose gradient the clip cut off, a scalar."""

    loss: Tensor
    clipped: Tensor


def token_weights(mask: Tensor) -> Tensor:
    """Every token of the minibatch counts the same."""
    return mask / mask.sum().clamp(min=1)


def completion_weights(mask: Tensor) -> Tensor:
    """Every completion of the minibatch counts the same, and its tokens share that (arXiv 2402.03300, eq. 3)."""
    lengths = mask.sum(-1, keepdim=True)
    return mask / lengths.clamp(min=1) / (lengths > 0).sum().clamp(min=1)


def clipped_policy_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, weights: Tensor, *, clip: float
) -> PolicyLoss:
    """PPO's clipped surrogate (Schulman et al., arXiv 1707.06347, eq. 7), negated: -min(ρ A, clip(ρ, 1±ε) A).

    Args:
        logprobs: of the policy that learns, (B, R).
        old: of the policy when the step began, (B, R).
        advantages: (B, R).
        weights: (B, R), 0 outside the completions.
        clip: ε.
    """
    inside = weights > 0
    ratio = (logprobs - old).masked_fill(~inside, 0.0).exp()
    plain = ratio * advantages
    bounded = ratio.clamp(1.0 - clip, 1.0 + clip) * advantages
    cut = ((bounded < plain) & inside).to(weights)
    return PolicyLoss(-(torch.minimum(plain, bounded) * weights).sum(), (cut * weights).sum())


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, weights: Tensor, *, clip: float) -> Tensor:
    """Squared error of values that may not move further than ε at a time, halved.

    ½ max((V - R)², (clip(V, V_old ± ε) - R)²): PPO's public implementation, described in Huang et al., "The 37
    implementation details of PPO" (ICLR blog 2022), detail 9.

    Args:
        values: (B, R).
        old: (B, R).
        returns: (B, R).
        weights: (B, R).
        clip: ε, in units of reward.
    """
    bounded = torch.minimum(torch.maximum(values, old - clip), old + clip)
    worst = torch.maximum((values - returns).square(), (bounded - returns).square())
    return 0.5 * (worst * weights).sum()


def importance_weights(old: Tensor, behaviour: Tensor, mask: Tensor, *, cap: float) -> Tensor:
    """Truncated importance weights min(π_old / π_behaviour, cap), token by token (Ionides 2008; IMPALA, arXiv
    1802.01561, section 4.1: ρ̄).

    Args:
        old: log-probabilities of the policy when the step began, (B, R).
        behaviour: of the policy that the tokens were sampled from, (B, R).
        mask: (B, R).
        cap: >= 1.

    Returns:
        (B, R), 1 outside the mask.
    """  # noqa: D205
    return (old - behaviour).masked_fill(~mask, 0.0).exp().clamp(max=cap)
