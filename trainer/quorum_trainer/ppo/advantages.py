"""What a completion, or each of its tokens, was worth beyond expectation: the three estimators. Pure.

    token rewards, values  --gae-->   advantages (B, R), returns (B, R)
    rewards by prompt      --rloo, grpo-->  advantages (B,)

Shapes: `B` completions, `R` tokens of the longest one. groups: (B,), the number of each completion's prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float, trace: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438, eq. 11, 12 and 16).

    δ_t = r_t + γ V_{t+1} - V_t and A_t = δ_t + γ λ A_{t+1}; behind the last token V and A are 0: a completion's end
    is the episode's, cut short or not.

    Args:
        rewards: (B, R); values[:, t] is V before token t.
        values: (B, R); values[:, t] is V before token t.
        mask: (B, R), True for a completion's own tokens, which come first.
        discount: γ.
        trace: λ.

    Returns:
        Advantages and returns A + V, (B, R) each, 0 outside the mask.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(values)
    following_value, following = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + discount * following_value - values[:, t]
        following = delta + discount * trace * following
        following_value = values[:, t]
        advantages[:, t] = following
    return advantages.masked_fill(~mask, 0.0), advantages + values


def rloo(rewards: Tensor, groups: Tensor) -> Tensor:
    """Reward minus the mean of the prompt's other completions (Ahmadian et al., arXiv 2402.14740, eq. 8).

    Args:
        rewards: (B,).
        groups: (B,).

    Returns:
        (B,). A prompt's only completion has nothing to be compared with and gets 0.
    """
    count, total = _by_group(torch.ones_like(rewards), groups), _by_group(rewards, groups)
    others = (total - rewards) / (count - 1).clamp(min=1)
    return torch.where(count > 1, rewards - others, torch.zeros_like(rewards))


def grpo(rewards: Tensor, groups: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """Rewards standardised within their prompt (Shao et al., arXiv 2402.03300, section 4.1.2): (r - mean) / std.

    std is the sample one, as everywhere here. Equal rewards, and a prompt's only completion, get 0.

    Args:
        rewards: (B,).
        groups: (B,).
        epsilon: added to std.
    """
    count = _by_group(torch.ones_like(rewards), groups)
    centred = rewards - _by_group(rewards, groups) / count
    std = (_by_group(centred.square(), groups) / (count - 1).clamp(min=1)).sqrt()
    return torch.where(count > 1, centred / (std + epsilon), torch.zeros_like(rewards))


def _by_group(values: Tensor, groups: Tensor) -> Tensor:
    """Each entry's group's sum, (B,)."""
    numbers = torch.unique(groups, return_inverse=True)[1]
    sums = torch.zeros(int(numbers.max()) + 1 if len(numbers) else 0, dtype=values.dtype, device=values.device)
    return sums.index_add(0, numbers, values)[numbers]
