"""Attention of one sequence: what a query sees, and which of two forms computes it.

    query (K, H, L, D), key, value (K, H_kv, S, D)  --AttentionRule-->  (K, H, L, D)

SDPA where nothing speaks against it. Scores written out where there is no fused kernel (softcap), and in bf16 on a CPU
for encoders, where three plain products beat it (ARCHITECTURE.md has the figures). That rounds scores to bf16, which is
harmless while they are small: of decoders, whose scores may have an offset of hundreds, SDPA keeps them in fp32.
Knows nothing of packing.

Shapes: `H` heads, `H_kv` key heads, `D` head size, `L` queries, `S` keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SCORES_AT_ONCE = 2**20
"""Written-out scores that a CPU holds at a time: 2 MiB in bf16, so that they stay in a core's cache."""
_FEWEST_SCORES = 2**15
"""Below that, starting three products costs more than they save."""


@dataclass(frozen=True, slots=True)
class AttentionRule:
    """Attention over one sequence: (K, H, L, D) queries over (K, H_kv, S, D) keys.

    Scores are (query . key) * scaling, D^-0.5 if None; then softcap * tanh(score / softcap), where there is a softcap
    (Gemma 2, arXiv 2408.00118, section 2). Query i sees key j iff |i - j| < sliding_window, and j <= i if causal.
    """

    is_causal: bool
    scaling: float | None
    sliding_window: int | None
    softcap: float | None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, place: int | None = None) -> Tensor:
        """(K, H, L, D). place: the position of the first query; S - L if None, so that the last meets the last."""
        queries, keys = query.shape[2], key.shape[2]
        first = keys - queries if place is None else place
        window = self.sliding_window if self.sliding_window is not None and self.sliding_window < keys else None
        hides = window is not None or (self.is_causal and first + 1 < keys)
        if self.softcap is not None or self._is_faster_written_out(query, keys):
            mask = visible(queries, keys, self.is_causal, window, first, query.device) if hides else None
            return self._written_out(query, key, value, mask)
        # SDPA's own is_causal lets query i see keys 0..i, which is right only where all positions are queries.
        is_square = window is None and queries == keys
        mask = None
        if hides and not is_square:
            mask = visible(queries, keys, self.is_causal, window, first, query.device)
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=self.is_causal and is_square,
            scale=self.scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )

    def _is_faster_written_out(self, query: Tensor, keys: int) -> bool:
        if query.dtype != torch.bfloat16 or query.device.type != "cpu" or self.is_causal or torch.is_grad_enabled():
            return False
        members, heads, queries, _ = query.shape
        of_a_head = queries * keys
        # A head that does not fit into the cache is left to a kernel that goes over it piece by piece.
        return of_a_head <= 2 * SCORES_AT_ONCE and members * heads * of_a_head >= _FEWEST_SCORES

    def _written_out(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Scores of as many heads at a time as fit into the cache; (L, S) mask of what is seen."""
        members, heads, queries, size = query.shape
        keys, groups = key.shape[2], heads // key.shape[1]
        # Heads that share their keys lie side by side: their queries are rows of one product.
        query = query.reshape(-1, groups * queries, size)
        key, value = key.reshape(-1, keys, size).transpose(1, 2), value.reshape(-1, keys, value.shape[3])
        bias = None
        if mask is not None:
            bias = query.new_zeros(mask.shape).masked_fill_(~mask, float("-inf")).repeat(groups, 1)
        step = max(1, SCORES_AT_ONCE // (groups * queries * keys)) if query.device.type == "cpu" else len(query)
        parts = (torch.split(tensor, step) for tensor in (query, key, value))
        pieces = [torch.bmm(self._scores(q, k, bias).softmax(-1), v) for q, k, v in zip(*parts, strict=True)]
        out = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return out.view(members, heads, queries, value.shape[2])

    def _scores(self, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
        """(B, L, D), (B, D, S) -> (B, L, S), with -inf where nothing is seen; scaled before they are rounded."""
        scale = self.scaling if self.scaling is not None else query.shape[2] ** -0.5
        if bias is not None and self.softcap is None:
            return torch.baddbmm(bias, query, key, alpha=scale)
        nothing = query.new_empty(query.shape[0], query.shape[1], key.shape[2])  # beta 0: not read
        scores = torch.baddbmm(nothing, query, key, beta=0, alpha=scale)
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        return scores if bias is None else scores + bias


def visible(queries: int, keys: int, is_causal: bool, window: int | None, first: int, device: torch.device) -> Tensor:
    """Boolean (L, S); True where query i, at position `first` + i, may see key j."""
    place = torch.arange(keys, device=device)
    distance = place[first : first + queries, None] - place[None, :]
    seen = distance >= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
    return seen if window is None else seen & (distance.abs() < window)
