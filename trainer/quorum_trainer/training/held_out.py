"""What a model in training makes of pairs that it is not trained on.

    pairs  --score_pairs-->  raw scores (K, P) of both sides  --look-->  loss, accuracy

Knows nothing of calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from quorum_model.model import EnsembleModel
from quorum_model.passes import plan_batches
from quorum_model.singles import SinglesModel
from quorum_trainer.data import EncodedPair

TOKEN_BUDGET = 8192


@dataclass(frozen=True, slots=True)
class HeldOut:
    """loss: Bradley-Terry's, mean over members and pairs. accuracy: of the members' average."""

    loss: float
    accuracy: float


def score_pairs(
    model: EnsembleModel | SinglesModel, pairs: Sequence[EncodedPair], token_budget: int = TOKEN_BUDGET
) -> tuple[Tensor, Tensor]:
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


def look(model: EnsembleModel, pairs: Sequence[EncodedPair]) -> HeldOut:
    """Loss and accuracy on held-out pairs; adapters' dropout is off for as long as it looks."""
    dropouts = {name: layer.input_dropout for name, layer in model.folded.items()}
    for layer in model.folded.values():
        layer.input_dropout = None
    chosen, rejected = score_pairs(model, pairs)
    for name, layer in model.folded.items():
        layer.input_dropout = dropouts[name]
    margins = chosen - rejected
    decided = [not pair.tie for pair in pairs]
    accuracy = ((margins.mean(dim=0).sign() + 1) / 2)[decided].mean()
    return HeldOut(float(functional.softplus(-margins)[:, decided].mean()), float(accuracy))
