"""Sequences end to end without padding: the packed batch and its pooling.

    rows of token-id lists or prefix forests  --pack-->  PackedBatch (R, T)  --body with `attend`-->  hidden (K, T, d)
                                                         --pool-->  (K, N, d)

A batch has R rows: one row that all members share, or K rows, a member's own each; every row holds N sequences. A row
lists its runs of tokens end to end; a sequence is one run, or several where it shares its beginning with others.
Rows of unequal length are filled up behind their last run; nothing attends to the filling.
Knows nothing of attention, adapters, heads or files.

Shapes: `R` rows, `N` sequences a row, `T` packed tokens, `d` hidden size.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from quorum_model.prefix_store import BLOCK_TOKENS, Block
from quorum_model.prefixes import PrefixForest, plain_forest

PACKING_KEYWORD = "quorum_packing"
"""The keyword under which a model hands the packing to its attention."""

Pooling = Literal["last", "first", "mean"]
Span = tuple[int, int]
Row = PrefixForest | Sequence[Sequence[int]]
"""Token ids by sequence and position, or what is left of them where beginnings are shared."""
Rows = Sequence[Row]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where a row's runs and sequences lie.

    spans: the tokens of each run. before: for each run, the spans of the tokens that come before it in its sequences,
    in order, adjacent ones joined. paths: for each sequence, the runs that it consists of, in order. stored: for each
    run, the blocks before all of these. wanted: blocks to fill, and the spans of their tokens.
    """

    spans: tuple[Span, ...]
    before: tuple[tuple[Span, ...], ...]
    paths: tuple[tuple[int, ...], ...]
    stored: tuple[tuple[Block, ...], ...]
    wanted: tuple[tuple[Block, tuple[Span, ...]], ...] = ()

    @property
    def num_tokens(self) -> int:
        """The row's tokens, without filling."""
        return self.spans[-1][1]

    def spans_of(self, sequence: int) -> tuple[Span, ...]:
        """All computed tokens of a sequence, in order, adjacent spans joined."""
        leaf = self.paths[sequence][-1]
        return _join([*self.before[leaf], self.spans[leaf]])


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A layer computes only these tokens of a single row: int64 (N,), one a sequence. fill: what the others get."""

    tokens: Tensor
    fill: float = 0.0


class Packing:
    """Where the sequences of each row lie, and what the layers of one forward pass tell each other about it.

    Args:
        rows: one a row, all with the same number of sequences.
    """

    def __init__(self, rows: Sequence[RowLayout]) -> None:
        self.rows = tuple(rows)
        self.num_attention_calls = 0
        self.num_windowed_calls = 0
        self.narrowed: Narrowed | None = None
        """Set by the last layer, which need not compute what pooling does not take."""
        self.plans: dict[Hashable, Any] = {}
        """What attention has worked out once for all layers."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """input_ids, position_ids: int64 (R, T). packing: the sequences' places."""

    input_ids: Tensor
    position_ids: Tensor
    packing: Packing


def lay_out(forest: PrefixForest) -> RowLayout:
    """A row's layout: the forest's runs end to end, in its order."""
    ends = list(accumulate(len(run.tokens) for run in forest.runs))
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    before: list[tuple[Span, ...]] = []
    stored: list[tuple[Block, ...]] = []
    for run in forest.runs:
        before.append(() if run.parent is None else _join([*before[run.parent], spans[run.parent]]))
        stored.append(run.stored if run.parent is None else stored[run.parent])
    paths = tuple(tuple(forest.path(leaf)) for leaf in forest.leaves)
    layout = RowLayout(tuple(spans), tuple(before), paths, tuple(stored))
    wanted = tuple((block, _cut(layout.spans_of(index), first)) for index, first, block in forest.wanted)
    return replace(layout, wanted=wanted)


def packing_of(lengths: Sequence[Sequence[int]]) -> Packing:
    """The packing of sequences of these lengths, by row, nothing shared."""
    return Packing([lay_out(plain_forest([range(length) for length in row])) for row in lengths])


def pack(rows: Rows, *, position_offset: int = 0, pad_id: int = 0, device: torch.device | str = "cpu") -> PackedBatch:
    """Lay the sequences of each row end to end.

    Args:
        rows: R rows of N non-empty sequences each.
        position_offset: position of a sequence's first token (RoBERTa and its kin start at pad id + 1).
        pad_id: fills short rows; never attended to, never pooled.
        device: where the tensors go.
    """
    forests = [row if isinstance(row, PrefixForest) else plain_forest(row) for row in rows]
    counts = {len(forest.leaves) for forest in forests}
    if len(counts) != 1 or 0 in counts or not all(len(run.tokens) for forest in forests for run in forest.runs):
        raise ValueError("every row needs the same number of sequences, and every sequence a token")
    width = max(forest.num_tokens for forest in forests)
    layouts = [lay_out(forest) for forest in forests]
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    positions = torch.full((len(rows), width), position_offset, dtype=torch.int64)
    for index, (forest, layout) in enumerate(zip(forests, layouts, strict=True)):
        used = layout.num_tokens
        ids[index, :used] = torch.tensor([token for run in forest.runs for token in run.tokens], dtype=torch.int64)
        steps = []
        for (start, end), before, stored in zip(layout.spans, layout.before, layout.stored, strict=True):
            first = position_offset + BLOCK_TOKENS * len(stored) + sum(right - left for left, right in before)
            steps.append(torch.arange(first, first + end - start))
        positions[index, :used] = torch.cat(steps)
    return PackedBatch(ids.to(device), positions.to(device), Packing(layouts))


def pooled_tokens(packing: Packing, pooling: Literal["last", "first"]) -> list[list[int]]:
    """By row, the token of each sequence that pooling takes: its place in the row."""
    if pooling == "first":
        return [[row.spans[path[0]][0] for path in row.paths] for row in packing.rows]
    return [[row.spans[path[-1]][1] - 1 for path in row.paths] for row in packing.rows]


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
    index = torch.tensor(pooled_tokens(packing, pooling), device=hidden.device).expand(hidden.shape[0], -1)
    return hidden.gather(1, index[:, :, None].expand(-1, -1, hidden.shape[2]))


def _pool_mean(hidden: Tensor, packing: Packing) -> Tensor:
    exact = hidden if hidden.dtype == torch.float64 else hidden.float()
    rows = [exact[index : index + 1] for index in range(exact.shape[0])] if len(packing.rows) > 1 else [exact]
    return torch.cat([_mean_of_row(row, layout) for row, layout in zip(rows, packing.rows, strict=True)])


def _mean_of_row(hidden: Tensor, layout: RowLayout) -> Tensor:
    """(K, T, d) -> (K, N, d)."""
    device = hidden.device
    sizes = torch.tensor([end - start for start, end in layout.spans])
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device)
    sums = hidden.new_zeros(hidden.shape[0], len(sizes), hidden.shape[2])
    sums = sums.index_add(1, owner, hidden[:, : layout.num_tokens])
    totals = torch.tensor([sum(int(sizes[run]) for run in path) for path in layout.paths], device=device)
    if any(len(path) > 1 for path in layout.paths):
        parts = [(sequence, run) for sequence, path in enumerate(layout.paths) for run in path]
        sequences, runs = torch.tensor(parts, device=device).T
        joined = hidden.new_zeros(hidden.shape[0], len(layout.paths), hidden.shape[2])
        sums = joined.index_add(1, sequences, sums[:, runs])
    else:
        sums = sums[:, torch.tensor([path[0] for path in layout.paths], device=device)]
    return sums / totals[:, None].to(hidden.dtype)


def _cut(spans: Sequence[Span], first: int) -> tuple[Span, ...]:
    """The spans of a block's tokens, from the first-th token on."""
    cut = []
    skip, left = first, BLOCK_TOKENS
    for start, end in spans:
        begin = min(end, start + skip)
        skip -= begin - start
        stop = min(end, begin + left)
        left -= stop - begin
        if stop > begin:
            cut.append((begin, stop))
    assert left == 0
    return tuple(cut)


def _join(spans: Sequence[Span]) -> tuple[Span, ...]:
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined)
