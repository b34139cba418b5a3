"""Losses of reward training, pure: member scores in, one loss a member out.

Shapes: `K` members, `P` pairs. Every member has its own loss; they are summed, never averaged over members, so that
a member's learning rate does not shrink as K grows.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected), each member's mean over its pairs (arXiv 2401.16635, equation 1).

    Args:
        chosen: (K, P).
        rejected: (K, P).

    Returns:
        (K,).
    """
    return functional.softplus(rejected - chosen).mean(dim=1)


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_chosen + r_rejected)^2, each member's mean over its pairs (Eisenstein et al., arXiv 2312.09244, section 2).

    Bradley-Terry leaves an offset free; this pulls it to zero, so that it does not inflate the std over members.

    Args:
        chosen: (K, P).
        rejected: (K, P).

    Returns:
        (K,).
    """
    return (chosen + rejected).square().mean(dim=1)
