"""Losses of reward training, pure: member scores in, one loss a member out.

Shapes: `K` members, `P` pairs. Every member has its own loss; they are summed, never averaged over members, so that
a member's learning rate does not shrink as K grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class PairTerms:
    """What a loss needs to know of the pairs beyond scores, (R, P) each; R = 1 where all members see the same pairs.

    targets: probability that chosen is the better one; 1, or one half for a tie. margins: by how much it should win.
    weights: how often the pair counts in the member's mean (bootstrap).
    """

    targets: Tensor
    margins: Tensor
    weights: Tensor

    def part(self, pairs: slice) -> PairTerms:
        """The terms of some of the pairs."""
        return PairTerms(self.targets[:, pairs], self.margins[:, pairs], self.weights[:, pairs])

    def to(self, like: Tensor) -> PairTerms:
        """The terms where, and in the dtype that, the scores are."""
        return PairTerms(self.targets.to(like), self.margins.to(like), self.weights.to(like))

    def rows(self, members: slice) -> PairTerms:
        """The terms of some of the members; what all share stays."""
        picked = (t if t.shape[0] == 1 else t[members] for t in (self.targets, self.margins, self.weights))
        return PairTerms(*picked)


def preference(chosen: Tensor, rejected: Tensor, terms: PairTerms, *, label_smoothing: float = 0.0) -> Tensor:
    """Bradley-Terry with margins and soft labels, each member's weighted sum over its pairs.

        -t log sigmoid(d) - (1 - t) log sigmoid(-d),   d = r_chosen - r_rejected - margin

    With t = 1 and no margin: arXiv 2401.16635, equation 1. Margins: arXiv 2307.09288, equation 2. Smoothing moves t
    towards one half by `label_smoothing`, as a label that is wrong with that probability asks for. A tie (t = 1/2) has
    no margin.

    Args:
        chosen: (K, P).
        rejected: (K, P).
        terms: of the pairs.
        label_smoothing: probability that a label is wrong.

    Returns:
        (K,); divide by the number of pairs of the whole batch.
    """
    targets = terms.targets * (1 - 2 * label_smoothing) + label_smoothing
    difference = chosen - rejected - terms.margins
    each = targets * functional.softplus(-difference) + (1 - targets) * functional.softplus(difference)
    return (each * terms.weights).sum(dim=1)


def centring(chosen: Tensor, rejected: Tensor, terms: PairTerms) -> Tensor:
    """(r_chosen + r_rejected)^2, each member's weighted sum over its pairs (Eisenstein et al., arXiv 2312.09244).

    Bradley-Terry leaves an offset free; this pulls it to zero, so that it does not inflate the std over members.

    Args:
        chosen: (K, P).
        rejected: (K, P).
        terms: of the pairs; only weights are used.

    Returns:
        (K,); divide by the number of pairs of the whole batch.
    """
    return ((chosen + rejected).square() * terms.weights).sum(dim=1)


def anchor(parameters: Iterable[Tensor], first: Iterable[Tensor]) -> Tensor:
    """Squared distance of every member to its own first weights (anchored ensembles, arXiv 1810.05546).

    Args:
        parameters: stacked over members, (K, ...) each.
        first: the same when training began.

    Returns:
        (K,).
    """
    distances = [(now - then).square().flatten(1).sum(dim=1) for now, then in zip(parameters, first, strict=True)]
    return torch.stack(distances).sum(dim=0)


def nuclear_norm_ratio(factors: Sequence[Tensor]) -> Tensor:
    """||A||_* / ||A||_F of the members' lora_A stacked upon each other; mean over modules (UP-RLHF, arXiv 2401.00243).

    Between 1 (all rows of all members parallel) and sqrt(K r) (all orthogonal): diversity, to be maximised.

    Args:
        factors: one a module, (K, d, r): `lora_A` of every member, transposed.

    Returns:
        A scalar.
    """
    ratios = []
    for a in factors:
        stacked = a.transpose(1, 2).reshape(-1, a.shape[1])  # (K r, d)
        ratios.append(torch.linalg.matrix_norm(stacked, "nuc") / torch.linalg.matrix_norm(stacked))
    return torch.stack(ratios).mean()
