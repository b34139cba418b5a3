"""Attention that keeps packed sequences apart, under Transformers' `AttentionInterface`.

    query (K, H, T, D), key, value (K, H_kv, T, D), the packing  --attend-->  (K, T, H, D)

Each run of tokens attends to itself and, where it continues a shared prefix, to the tokens before it: the queries are
the last L of S positions. Keys of a prefix are put in front of a run's own, so that a shared prefix gives the very sums
that an unshared one gives (merging two partial softmaxes by their log-sum-exp saves the copy, and rounds otherwise).
On a CPU one call a run; on CUDA one variable-length call for the whole batch. Knows nothing of pooling or members.

Shapes: `R` rows, `T` packed tokens, `H` heads, `H_kv` key heads, `D` head size, `L` queries, `S` keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from quorum_model.attention_rule import AttentionRule
from quorum_model.packing import PACKING_KEYWORD, Narrowed, Packing, RowLayout, Span
from quorum_model.varlen import attend_varlen, can_attend_varlen

ATTENTION_NAME = "quorum_packed"

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
    layer = packing.num_attention_calls
    packing.num_attention_calls += 1
    packing.num_windowed_calls += sliding_window is not None
    rows, _, width, _ = query.shape
    if len(packing.rows) not in (1, rows):
        raise RuntimeError(f"packing of {len(packing.rows)} rows met activations of {rows} rows")
    rule = AttentionRule(
        is_causal if is_causal is not None else bool(getattr(module, "is_causal", True)),
        scaling,
        sliding_window,
        softcap,
    )
    for row in packing.rows:  # blocks are filled where there is one row
        for block, spans in row.wanted:
            block.keys.append(_copy(key, spans))
            block.values.append(_copy(value, spans))
    if rule.softcap is None and can_attend_varlen(query):
        return attend_varlen(query, key, value, packing, layer, scaling, rule.is_causal, sliding_window), None
    if packing.narrowed is not None:
        return _attend_pooled(rule, (query, key, value), packing.rows[0], packing.narrowed, layer), None
    if len(packing.rows) == 1:
        return _attend_row(rule, (query, key, value), packing.rows[0], width, layer), None
    each = [
        _attend_row(rule, (query[r : r + 1], key[r : r + 1], value[r : r + 1]), packing.rows[r], width, layer)
        for r in range(rows)
    ]
    return torch.cat(each), None


def _attend_row(
    rule: AttentionRule, qkv: tuple[Tensor, Tensor, Tensor], layout: RowLayout, width: int, layer: int
) -> Tensor:
    query, key, value = qkv
    rest = width - layout.num_tokens
    sizes = [end - start for start, end in layout.spans] + ([rest] if rest else [])
    # Split, not sliced: the gradient of a slice is a whole row of zeros, and there would be one a run.
    queries, keys, values = (torch.split(tensor, sizes, dim=2) for tensor in qkv)
    pieces = []
    for index, (before, stored) in enumerate(zip(layout.before, layout.stored, strict=True)):
        keys_of_run, values_of_run = keys[index], values[index]
        if before or stored:
            spans = (*before, layout.spans[index])
            keys_of_run = _take(key, spans, [block.keys[layer] for block in stored])
            values_of_run = _take(value, spans, [block.values[layer] for block in stored])
        pieces.append(rule(queries[index], keys_of_run, values_of_run).transpose(1, 2))
    if rest:
        pieces.append(query.new_zeros(query.shape[0], rest, query.shape[1], value.shape[3]))
    return torch.cat(pieces, dim=1)


def _attend_pooled(
    rule: AttentionRule, qkv: tuple[Tensor, Tensor, Tensor], layout: RowLayout, narrowed: Narrowed, layer: int
) -> Tensor:
    """Only the pooled token of each sequence asks; all of its sequence answers."""
    query, key, value = qkv
    pieces = []
    for sequence, token in enumerate(narrowed.tokens.tolist()):
        spans = layout.spans_of(sequence)
        stored = layout.stored[layout.paths[sequence][-1]]
        keys = _take(key, spans, [block.keys[layer] for block in stored])
        values = _take(value, spans, [block.values[layer] for block in stored])
        is_first = token == spans[0][0] and not stored
        pieces.append(rule(query[:, :, token : token + 1], keys, values, 0 if is_first else None))
    out = query.new_full((query.shape[0], query.shape[2], query.shape[1], value.shape[3]), narrowed.fill)
    return out.index_copy_(1, narrowed.tokens, torch.cat(pieces, dim=2).transpose(1, 2))


def _take(tensor: Tensor, spans: tuple[Span, ...], stored: Sequence[Tensor] = ()) -> Tensor:
    """(K, H, T, D) -> (K, H, S, D), stored tokens and those of the spans; consecutive tokens alone are not copied."""
    if not stored and all(left[1] == right[0] for left, right in pairwise(spans)):
        return tensor[:, :, spans[0][0] : spans[-1][1]]
    return _copy(tensor, spans, stored)


def _copy(tensor: Tensor, spans: tuple[Span, ...], stored: Sequence[Tensor] = ()) -> Tensor:
    return torch.cat([*stored, *(tensor[:, :, start:end] for start, end in spans)], dim=2)


# Transformers' public extension point: registering is idempotent and has no other effect. No mask function is
# registered under this name, so models build no mask at all.
AttentionInterface.register(ATTENTION_NAME, attend)
