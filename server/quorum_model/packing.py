"""Sequences end to end without padding: the packed batch, its pooling, and attention that keeps sequences apart.

    rows of token-id lists  --pack-->  PackedBatch (R, T)  --body with `attend`-->  hidden (K, T, d)
                                                           --pool-->  (K, N, d)

A batch has R rows: one row that all members share, or K rows, a member's own each; every row holds N sequences.
Rows of unequal length are filled up behind their last sequence; nothing attends to the filling.
Knows nothing of adapters, heads or files.

Shapes: `R` rows, `N` sequences a row, `T` packed tokens, `H` heads, `D` head size, `d` hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

ATTENTION_NAME = "quorum_packed"
PACKING_KEYWORD = "quorum_packing"

# What models hand to every attention function and what changes nothing in it.
_HARMLESS = frozenset(
    {
        PACKING_KEYWORD,
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "deterministic",
    }
)

Pooling = Literal["last", "first", "mean"]
Rows = Sequence[Sequence[Sequence[int]]]
"""Token ids by row, sequence and position."""


class Packing:
    """Where the sequences of each row lie, and how often attention has used it.

    Args:
        lengths: sequence lengths by row, in packed order.
    """

    def __init__(self, lengths: Sequence[Sequence[int]]) -> None:
        self.lengths = [list(row) for row in lengths]
        self.spans = [list(zip(accumulate(row, initial=0), accumulate(row), strict=False)) for row in self.lengths]
        self.num_attention_calls = 0
        self.num_windowed_calls = 0


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """input_ids, position_ids: int64 (R, T). packing: the sequences' places."""

    input_ids: Tensor
    position_ids: Tensor
    packing: Packing

    @property
    def num_sequences(self) -> int:
        """N, sequences a row."""
        return len(self.packing.lengths[0])


def pack(rows: Rows, *, position_offset: int = 0, pad_id: int = 0, device: torch.device | str = "cpu") -> PackedBatch:
    """Lay the sequences of each row end to end.

    Args:
        rows: R rows of N non-empty sequences each.
        position_offset: position of a sequence's first token (RoBERTa and its kin start at pad id + 1).
        pad_id: fills short rows; never attended to, never pooled.
        device: where the tensors go.
    """
    lengths = [[len(sequence) for sequence in row] for row in rows]
    if len({len(row) for row in lengths}) != 1 or not all(all(row) and row for row in lengths):
        raise ValueError("every row needs the same number of sequences, and every sequence a token")
    width = max(sum(row) for row in lengths)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    positions = torch.full((len(rows), width), position_offset, dtype=torch.int64)
    for index, row in enumerate(rows):
        flat = [token for sequence in row for token in sequence]
        ids[index, : len(flat)] = torch.tensor(flat, dtype=torch.int64)
        steps = [torch.arange(position_offset, position_offset + length) for length in lengths[index]]
        positions[index, : len(flat)] = torch.cat(steps)
    return PackedBatch(ids.to(device), positions.to(device), Packing(lengths))


def plan_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices of the sequences of each pass: similar lengths together, at most `token_budget` tokens a pass."""
    batches: list[list[int]] = []
    used = token_budget + 1
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if used + lengths[index] > token_budget:
            batches.append([])
            used = 0
        batches[-1].append(index)
        used += lengths[index]
    return batches


def pool(hidden: Tensor, packing: Packing, pooling: Pooling) -> Tensor:
    """One vector a sequence: its first token's, its last token's, or the mean over its tokens.

    Args:
        hidden: (K, T, d) or (1, T, d).
        packing: of R rows; R is 1 or hidden's row count.
        pooling: which.

    Returns:
        (K, N, d) or (1, N, d); means are accumulated in at least fp32.
    """
    if pooling == "mean":
        return _pool_mean(hidden, packing)
    edge = [[start if pooling == "first" else end - 1 for start, end in row] for row in packing.spans]
    index = torch.tensor(edge, device=hidden.device).expand(hidden.shape[0], -1)
    return hidden.gather(1, index[:, :, None].expand(-1, -1, hidden.shape[2]))


def _pool_mean(hidden: Tensor, packing: Packing) -> Tensor:
    rows, width, size = hidden.shape
    count = len(packing.lengths[0])
    segments = torch.full((len(packing.lengths), width), count, dtype=torch.int64)  # the filling goes to bin `count`
    for row, lengths in enumerate(packing.lengths):
        owner = torch.repeat_interleave(torch.arange(count), torch.tensor(lengths))
        segments[row, : len(owner)] = owner
    bins = segments.expand(rows, -1) + (count + 1) * torch.arange(rows)[:, None]
    exact = hidden if hidden.dtype == torch.float64 else hidden.float()
    sums = exact.new_zeros(rows * (count + 1), size)
    sums = sums.index_add(0, bins.flatten().to(hidden.device), exact.reshape(rows * width, size))
    sizes = torch.tensor(packing.lengths, dtype=exact.dtype, device=hidden.device).expand(rows, -1)
    return sums.view(rows, count + 1, size)[:, :count] / sizes[:, :, None]


def attend(  # noqa: PLR0913 - the signature is Transformers'
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within each packed sequence; the signature is Transformers' `AttentionInterface`.

    Args:
        module: the attention layer; its `is_causal` holds unless the keyword is given.
        query: (K, H, T, D).
        key: (K, H_kv, T, D), heads not repeated.
        value: (K, H_kv, T, D).
        attention_mask: None; a mask would mean that the caller pads.
        scaling: of the scores; D^-0.5 if None.
        dropout: 0; a backbone in training mode would have another.
        is_causal: see `module`.
        sliding_window: key j is visible from query i iff |i - j| < sliding_window.
        softcap: scores become softcap * tanh(score / softcap) (Gemma 2).
        **kwargs: the packing under `PACKING_KEYWORD`, and what has no effect on attention; anything else is refused.

    Returns:
        ((K, T, H, D), None).

    Raises:
        RuntimeError: something that this attention would silently get wrong (a mask, sinks, a position bias).
    """
    packing = kwargs.get(PACKING_KEYWORD)
    if not isinstance(packing, Packing):
        raise RuntimeError("packed attention was called without its packing")
    unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in _HARMLESS)
    if attention_mask is not None or unknown or dropout:
        raise RuntimeError(f"packed attention knows no mask, dropout or {unknown}")
    packing.num_attention_calls += 1
    packing.num_windowed_calls += sliding_window is not None
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    span_attention = _SpanAttention(causal, scaling, sliding_window, softcap)
    rows, _, width, _ = query.shape
    if len(packing.spans) not in (1, rows):
        raise RuntimeError(f"packing of {len(packing.spans)} rows met activations of {rows} rows")
    if len(packing.spans) == 1:
        return _attend_row(span_attention, (query, key, value), packing.spans[0], width), None
    each = [
        _attend_row(span_attention, (query[r : r + 1], key[r : r + 1], value[r : r + 1]), packing.spans[r], width)
        for r in range(rows)
    ]
    return torch.cat(each), None


def _attend_row(
    span_attention: _SpanAttention, qkv: tuple[Tensor, Tensor, Tensor], spans: list[tuple[int, int]], width: int
) -> Tensor:
    rest = width - spans[-1][1]
    sizes = [end - start for start, end in spans] + ([rest] if rest else [])
    # Split, not sliced: the gradient of a slice is a whole row of zeros, and there would be one a sequence.
    queries, keys, values = (torch.split(tensor, sizes, dim=2) for tensor in qkv)
    parts = zip(queries[: len(spans)], keys[: len(spans)], values[: len(spans)], strict=True)
    pieces = [span_attention(query, key, value).transpose(1, 2) for query, key, value in parts]
    if rest:
        query, _, value = qkv
        pieces.append(query.new_zeros(query.shape[0], rest, query.shape[1], value.shape[3]))
    return torch.cat(pieces, dim=1)


@dataclass(frozen=True, slots=True)
class _SpanAttention:
    """Attention over one sequence, (K, H, L, D) -> (K, H, L, D)."""

    is_causal: bool
    scaling: float | None
    sliding_window: int | None
    softcap: float | None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length = query.shape[2]
        window = self.sliding_window if self.sliding_window is not None and self.sliding_window < length else None
        if self.softcap is not None:
            return self._explicit(query, key, value, window)
        mask = _visible(length, self.is_causal, window, query.device) if window is not None else None
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=self.is_causal and mask is None,
            scale=self.scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )

    def _explicit(self, query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
        """Softcapped scores have no fused kernel on a CPU."""
        assert self.softcap is not None
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scale = self.scaling if self.scaling is not None else query.shape[3] ** -0.5
        scores = torch.tanh(query @ key.transpose(2, 3) * scale / self.softcap) * self.softcap
        visible = _visible(query.shape[2], self.is_causal, window, query.device)
        exact = torch.float64 if scores.dtype == torch.float64 else torch.float32
        weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1, dtype=exact)
        return weights.to(value.dtype) @ value


def _visible(length: int, is_causal: bool, window: int | None, device: torch.device) -> Tensor:
    """Boolean (L, L); True where query i may see key j."""
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None, :]
    visible = distance >= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
    return visible if window is None else visible & (distance.abs() < window)


# Transformers' public extension point: registering is idempotent and has no other effect. No mask function is
# registered under this name, so models build no mask at all.
AttentionInterface.register(ATTENTION_NAME, attend)
