"""From a score to what the policy is paid: penalties, and the KL to the reference as a part of the reward. Pure.

Shapes: `B` completions, `R` tokens of the longest one.
"""

from __future__ import annotations

from torch import Tensor

from quorum_trainer.ppo.kl import k1
from quorum_trainer.ppo.tokens import masked_sum


def penalised(
    scores: Tensor, lengths: Tensor, ended: Tensor, *, missing_eos: float, per_token: float, free_tokens: int
) -> Tensor:
    """Scores less what a completion pays for having no end, and for each token beyond the free ones.

    Args:
        scores: (B,).
        lengths: (B,), tokens.
        ended: (B,), True where the completion closed itself by EOS.
        missing_eos: reward taken off a completion that did not.
        per_token: reward taken off a token.
        free_tokens: tokens that cost nothing.
    """
    excess = (lengths - free_tokens).clamp(min=0).to(scores)
    return scores - missing_eos * (~ended).to(scores) - per_token * excess


def token_rewards(scores: Tensor, logprobs: Tensor, reference: Tensor, mask: Tensor, *, coefficient: float) -> Tensor:
    """-β k1 at every token, and the score at the last one (Ziegler et al., arXiv 1909.08593, eq. 2).

    Args:
        scores: (B,).
        logprobs: (B, R), of the policy when the step began and of the reference.
        reference: (B, R), of the policy when the step began and of the reference.
        mask: (B, R); every completion has at least one token.
        coefficient: β.

    Returns:
        (B, R), 0 outside the mask.
    """
    rewards = (-coefficient * k1(logprobs, reference)).masked_fill(~mask, 0.0)
    last = mask.sum(-1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores.to(rewards).unsqueeze(1))


def completion_rewards(
    scores: Tensor, logprobs: Tensor, reference: Tensor, mask: Tensor, *, coefficient: float
) -> Tensor:
    """The score less β times the completion's KL: the sum of `token_rewards`, (B,)."""
    return scores - coefficient * masked_sum(k1(logprobs, reference), mask)
