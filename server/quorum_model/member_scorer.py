"""One ensemble's weights on a device, ready to score: sequences of token ids in, K raw scores each out.

    token ids  --MemberScorer.score: passes under a token budget-->  raw (K, B)

What the engine process runs. Knows nothing of bundles' files, text, calibration, queues or HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from quorum_client.errors import RequestTooLarge
from quorum_model.bundle.manifest import Manifest
from quorum_model.bundle.read import Bundle
from quorum_model.model import Attention
from quorum_model.packing import Row
from quorum_model.passes import continue_from, plan_passes
from quorum_model.prefix_store import Block, Digest, PrefixStore
from quorum_model.prefixes import PrefixForest, share_prefixes
from quorum_model.singles import ScoringModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemberScores:
    """raw: float32 (K, B), before calibration, in the order given. computed_tokens: tokens that went through."""

    raw: NDArray[np.float32]
    computed_tokens: int


class MemberScorer:
    """Scores token-id sequences with every member of one ensemble.

    Args:
        model: the ensemble in memory.
        bundle: where it came from.
        token_budget: most computed tokens in one pass; a longer single sequence still gets a pass of its own, and one
            that shares a long beginning may be larger (see `room_for`).
        share_prefixes: compute what sequences begin with in common once, where the backbone allows it.
        store_bytes: memory for beginnings that are kept from one pass to the next, where the model allows it; 0 for
            none.
    """

    def __init__(
        self,
        model: ScoringModel,
        bundle: Bundle,
        token_budget: int,
        *,
        share_prefixes: bool = True,
        store_bytes: int = 0,
    ) -> None:
        self._model = model
        self.shares_prefixes = share_prefixes and model.shares_prefixes
        has_store = store_bytes > 0 and self.shares_prefixes and model.stores_prefixes
        self._store = PrefixStore(store_bytes) if has_store else None
        self.token_budget = token_budget
        self._memory_was_short = False
        self.manifest: Manifest = bundle.manifest
        self.version = bundle.version
        self.num_members = model.num_members
        self.device = str(model.device)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.attention: Attention = model.attention

    def score(self, sequences: Sequence[list[int]], on_pass: Callable[[int], None] | None = None) -> MemberScores:
        """Raw scores of every member.

        Args:
            sequences: B non-empty lists of token ids, special ones included.
            on_pass: told after each pass how many sequences it scored.

        Raises:
            RequestTooLarge: a single sequence does not fit into the device's memory.
        """
        raw = np.empty((self.num_members, len(sequences)), dtype=np.float32)
        waiting = self._plan(sequences)[::-1]
        computed_tokens = 0
        while waiting:
            indices = waiting.pop()
            row, new = self._row_of([sequences[index] for index in indices])
            num_tokens = row.num_tokens if isinstance(row, PrefixForest) else sum(map(len, row))
            scores = self._run(row)
            if scores is None:
                waiting += self._halve(indices, num_tokens, sequences)[::-1]
                continue
            if self._store is not None:
                self._store.put(new)
            raw[:, indices] = scores
            computed_tokens += num_tokens
            if on_pass is not None:
                on_pass(len(indices))
        return MemberScores(raw, computed_tokens)

    def _row_of(self, sequences: list[list[int]]) -> tuple[Row, list[tuple[Digest, Block]]]:
        """What is computed for a pass, and the blocks that it fills for later ones."""
        if self._store is not None:
            return continue_from(self._store, sequences)
        return (share_prefixes(sequences) if self.shares_prefixes else sequences), []

    def _run(self, row: Row) -> NDArray[np.float32] | None:
        """Raw scores (K, N), or None where memory did not suffice."""
        try:
            # Whatever the caller computes in: the model has a dtype of its own.
            with torch.inference_mode(), torch.autocast(self.device.partition(":")[0], enabled=False):
                scores: NDArray[np.float32] = self._model([row]).float().cpu().numpy()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        return scores

    def _halve(self, indices: list[int], num_tokens: int, sequences: Sequence[list[int]]) -> list[list[int]]:
        """The same sequences in passes half as large, and so from now on: what was too large once will be again."""
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if len(indices) == 1:
            raise RequestTooLarge(f"a text of {num_tokens} tokens does not fit into the device's memory")
        self.token_budget = max(1, min(self.token_budget, num_tokens) // 2)
        logger.warning("out of memory: passes of at most %d tokens from now on", self.token_budget)
        self._memory_was_short = True
        again = self._plan([sequences[index] for index in indices])
        return [[indices[place] for place in each] for each in again]

    def _plan(self, sequences: Sequence[list[int]]) -> list[list[int]]:
        return plan_passes(sequences, self.token_budget, share=self.shares_prefixes, stretch=not self._memory_was_short)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a pass failed for want of memory, on CUDA or on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
