"""Packed attention on CUDA: one variable-length FlashAttention call for all members and runs of a batch.

    query (K, H, T, D), key, value (K, H_kv, T, D), the packing  --attend_varlen-->  (K, T, H, D)

`torch.nn.attention.varlen` takes sequences end to end with as many queries as keys or fewer; with fewer, the last query
meets the last key (FlashAttention's convention), which is what a run behind a shared prefix needs. Lengths lie on the
device from the first layer on, and are used by all layers.

Shapes: `T` packed tokens, `H` heads, `H_kv` key heads, `D` head size.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from quorum_model.packing import Packing
from quorum_model.prefix_store import BLOCK_TOKENS, Block

# A score must not depend on its companions, and splits of the keys would depend on the longest sequence. PyTorch before
# 2.13 has no such option: there the kernel splits for passes of one query a sequence alone, and takes fewer key heads
# than query heads unasked.
_HAS_OPTIONS = "num_splits" in inspect.signature(varlen_attn).parameters
_FEWEST_QUERIES = 2
_DTYPES = (torch.bfloat16, torch.float16)
_LARGEST_HEAD = 256


def can_attend_varlen(query: Tensor) -> bool:
    """Whether the kernel takes this query: on CUDA, in half precision, heads of at most 256."""
    return query.is_cuda and query.dtype in _DTYPES and query.shape[3] <= _LARGEST_HEAD


@dataclass(frozen=True, slots=True)
class VarlenPlan:
    """What the kernel needs to know of a batch.

    query_ends, key_ends: int32 (M + 1), cumulative lengths over all rows' runs and fillings. key_index: int64, the flat
    token of each key, or None where keys are the tokens themselves; tokens of stored blocks come after the batch's own,
    block by block and row by row. stored: these blocks. longest_query, longest_key: tokens.
    """

    query_ends: Tensor
    key_ends: Tensor
    key_index: Tensor | None
    stored: tuple[Block, ...]
    longest_query: int
    longest_key: int


def make_plan(packing: Packing, num_rows: int, width: int, device: torch.device) -> VarlenPlan:
    """The plan of a packing over activations of `num_rows` rows of `width` tokens."""
    layouts = packing.rows if len(packing.rows) == num_rows else packing.rows * num_rows
    stored = tuple(dict.fromkeys(block for layout in packing.rows for blocks in layout.stored for block in blocks))
    place_of = {block: num_rows * (width + BLOCK_TOKENS * index) for index, block in enumerate(stored)}
    queries: list[int] = []
    keys: list[list[tuple[int, int]]] = []
    for row, layout in enumerate(layouts):
        first = row * width
        for before, span, blocks in zip(layout.before, layout.spans, layout.stored, strict=True):
            queries.append(span[1] - span[0])
            starts = [place_of[block] + BLOCK_TOKENS * row for block in blocks]
            own = [(first + start, first + end) for start, end in (*before, span)]
            keys.append([*((start, start + BLOCK_TOKENS) for start in starts), *own])
        if width > layout.num_tokens:  # the filling attends to itself; nobody reads it
            queries.append(width - layout.num_tokens)
            keys.append([(first + layout.num_tokens, first + width)])
    lengths = [sum(end - start for start, end in spans) for spans in keys]
    index = None
    if lengths != queries:
        pieces = [torch.arange(start, end) for spans in keys for start, end in spans]
        index = torch.cat(pieces).to(device)
    ends = (torch.tensor(list(accumulate(each, initial=0)), dtype=torch.int32) for each in (queries, lengths))
    query_ends, key_ends = (tensor.to(device) for tensor in ends)
    return VarlenPlan(query_ends, key_ends, index, stored, max(queries), max(lengths))


def attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    layer: int,
    scaling: float | None,
    is_causal: bool,
    window: int | None,
) -> Tensor:
    """Attention within each packed sequence, (K, T, H, D).

    Args:
        query: (K, H, T, D).
        key: (K, H_kv, T, D), heads not repeated.
        value: as key.
        packing: of one row, or of K.
        layer: which of a stored block's keys and values are this layer's.
        scaling: of the scores; D^-0.5 if None.
        is_causal: whether a token sees only those before it.
        window: key j is visible from query i iff |i - j| < window.
    """
    rows, heads, width, size = query.shape
    plan = packing.plans.get(rows)
    if plan is None:
        plan = packing.plans[rows] = make_plan(packing, rows, width, query.device)
    flat_query, flat_key, flat_value = _flat(query), _flat(key), _flat(value)
    if plan.key_index is not None:
        keys = torch.cat([flat_key, *(_flat(block.keys[layer]) for block in plan.stored)])
        values = torch.cat([flat_value, *(_flat(block.values[layer]) for block in plan.stored)])
        flat_key, flat_value = keys[plan.key_index], values[plan.key_index]
    reach = -1 if window is None else window - 1
    options: dict[str, Any] = {"enable_gqa": key.shape[1] != query.shape[1], "num_splits": 1} if _HAS_OPTIONS else {}
    out = varlen_attn(
        flat_query,
        flat_key,
        flat_value,
        plan.query_ends,
        plan.key_ends,
        max(plan.longest_query, _FEWEST_QUERIES),
        plan.longest_key,
        scale=scaling,
        window_size=(reach, 0 if is_causal else reach),
        **options,
    )
    assert isinstance(out, Tensor)
    return out.view(rows, width, heads, size)


def _flat(tensor: Tensor) -> Tensor:
    """(K, H, T, D) -> (K T, H, D)."""
    return tensor.transpose(1, 2).flatten(0, 1)
