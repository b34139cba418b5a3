"""Arithmetic over the tokens of completions: log-probabilities, masked means, whitening. Pure.

Shapes: `B` completions, `R` tokens of the longest one, `V` vocabulary. Column t is a completion's t-th token; a mask is
True where there is one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """The log of softmax(logits / temperature) at the given tokens, in nats and at least float32.

    Args:
        logits: (B, R, V); column t predicts token t.
        token_ids: (B, R).
        temperature: > 0, the one that tokens are sampled at.

    Returns:
        (B, R). The whole (B, R, V) of log-probabilities is never held.
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    chosen = scaled.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return chosen - scaled.logsumexp(-1)


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(logits / temperature) in nats: (B, R, V) -> (B, R)."""
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return scaled.logsumexp(-1) - (scaled.softmax(-1) * scaled).sum(-1)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over a completion's own tokens, (B, R) -> (B,). What lies under the mask may be anything, NaN too."""
    return values.masked_fill(~mask, 0.0).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all tokens of all completions, (B, R) -> (); 0 where there are none."""
    return masked_sum(values, mask).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """Values with mean 0 and variance 1 over the masked entries; 0 outside the mask.

    The variance is the biased one. Equal values become 0, never NaN.

    Args:
        values: any shape.
        mask: of the same shape.
        epsilon: added to the variance.
    """
    count = mask.sum().clamp(min=1)
    inside = values.masked_fill(~mask, 0.0)
    centred = (inside - inside.sum() / count).masked_fill(~mask, 0.0)
    variance = centred.square().sum() / count
    return centred * torch.rsqrt(variance + epsilon)
