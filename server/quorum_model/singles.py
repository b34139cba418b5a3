"""K whole models as one ensemble: the paper's baseline (arXiv 2401.16635), with nothing shared.

    rows  --each member's own model-->  raw scores (K, N)

What both ways of keeping members have in common is `ScoringModel`. This one costs K times the memory and time of one
model: a backbone that members share is what every other kind is for. Knows nothing of files,
text or calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from quorum_model.model import Attention, EnsembleModel
from quorum_model.packing import Rows


class ScoringModel(Protocol):
    """What is scored with: `EnsembleModel`, or `SinglesModel` for members that share nothing."""

    num_members: int
    attention: Attention

    @property
    def shares_prefixes(self) -> bool:
        """Whether a row may be a prefix forest."""

    @property
    def stores_prefixes(self) -> bool:
        """Whether a forest may begin with stored blocks."""

    @property
    def vocab_size(self) -> int:
        """Token ids that it knows."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dtype(self) -> torch.dtype:
        """What the body computes in."""

    def __call__(self, rows: Rows) -> Tensor:
        """Raw scores (K, N) of rows of N sequences: one row that every member scores, or K rows."""


class SinglesModel(nn.Module):
    """K models, one after another; called like an `EnsembleModel`.

    Args:
        models: one member each, all on one device and in one dtype; their architectures may differ.
    """

    def __init__(self, models: Sequence[EnsembleModel]) -> None:
        super().__init__()
        if any(model.num_members != 1 for model in models):
            raise ValueError("each model has one member")
        self.models = nn.ModuleList(models)
        self.num_members = len(models)
        # The slowest says what to expect: one member that cannot be packed holds up every pass.
        is_packed = all(model.attention == "packed" for model in models)
        self.attention: Attention = "packed" if is_packed else "unpadded"

    @property
    def shares_prefixes(self) -> bool:
        """Whether a row may be a prefix forest."""
        return all(model.shares_prefixes for model in self._each)

    @property
    def stores_prefixes(self) -> bool:
        """No: a block holds one model's keys and values."""
        return False

    @property
    def vocab_size(self) -> int:
        """Token ids that every member knows."""
        return min(model.vocab_size for model in self._each)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        """What the bodies compute in."""
        return self._first.dtype

    @property
    def _first(self) -> EnsembleModel:
        return self._each[0]

    @property
    def _each(self) -> list[EnsembleModel]:
        return [cast(EnsembleModel, model) for model in self.models]

    def forward(self, rows: Rows) -> Tensor:
        """Raw scores (K, N), before calibration, in the heads' dtype.

        Args:
            rows: one row of N sequences that every member scores, or K rows, a member's own each.
        """
        if len(rows) not in (1, self.num_members):
            raise ValueError(f"expected 1 or {self.num_members} rows, got {len(rows)}")
        own = rows if len(rows) > 1 else [rows[0]] * self.num_members
        return torch.cat([model([row]) for model, row in zip(self.models, own, strict=True)])
