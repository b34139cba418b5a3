"""The peer of those who know how: a PEFT model over packed sequences, one member after another.

    token ids  --packed as the engine packs them, one adapter at a time-->  raw scores (K, B)

What FlashAttention's variable-length kernel and a padding-free collator give to any Transformers model: the engine's
packing and attention under PEFT's own layers, so that the difference is what folding, compiling and sharing are worth.
Knows no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quorum_model.attention import ATTENTION_NAME
from quorum_model.backbone import load_backbone
from quorum_model.benchmark.padded import TOKEN_BUDGETS, in_order, seconds_of, wrap_in_peft
from quorum_model.benchmark.random_ensemble import load_whole_model
from quorum_model.heads import head_of
from quorum_model.packing import PACKING_KEYWORD, Pooling, pack, pool
from quorum_model.passes import plan_batches


class PaddingFreePeft:
    """K adapters on one Transformers model that runs packed rows.

    Args:
        backbone: folder of the base model.
        adapters: a folder a member, in PEFT's format, each with its head.
        dtype: of everything, adapters and heads too.
        device: where it runs.
        pooling: of the ensemble.
    """

    def __init__(
        self, backbone: Path, adapters: Sequence[Path], *, dtype: torch.dtype, device: torch.device, pooling: Pooling
    ) -> None:
        self._names = [folder.name for folder in adapters]
        self._device, self._pooling = device, pooling
        self._offset = load_backbone(backbone).position_offset
        base = load_whole_model(backbone, dtype)
        self._model: Any = wrap_in_peft(base, adapters).to(device).eval()
        self._body = base.base_model
        self._head = head_of(base, base.base_model_prefix)  # PEFT's by now, which follows the adapter
        base.set_attn_implementation(ATTENTION_NAME)

    def one_after_another(self, sequences: Sequence[list[int]], token_budget: int) -> NDArray[np.float32]:
        """Raw scores (K, B): each member over all packed batches."""
        return np.concatenate([self.one(index, sequences, token_budget) for index in range(len(self._names))])

    def one(self, member: int, sequences: Sequence[list[int]], token_budget: int) -> NDArray[np.float32]:
        """Raw scores (1, B) of one member."""
        self._model.set_adapter(self._names[member])
        batches = plan_batches([len(sequence) for sequence in sequences], token_budget)
        scores = []
        with torch.inference_mode():
            for indices in batches:
                row = [sequences[index] for index in indices]
                batch = pack([row], position_offset=self._offset, device=self._device)
                hidden = self._body(
                    input_ids=batch.input_ids, position_ids=batch.position_ids, **{PACKING_KEYWORD: batch.packing}
                ).last_hidden_state
                scores.append(self._head(pool(hidden, batch.packing, self._pooling)[0])[None])
        return in_order(torch.cat(scores, dim=1), batches)

    def fastest_budget(self, sequences: Sequence[list[int]]) -> int:
        """The pass at which one member is fastest."""
        budgets = TOKEN_BUDGETS[self._device.type]
        return min(budgets, key=lambda budget: seconds_of(lambda: self.one(0, sequences, budget)))
