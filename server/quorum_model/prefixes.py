"""Sequences that begin alike, written down once: a forest of token runs.

    token ids of B sequences  --share_prefixes-->  PrefixForest (runs, depth first; the run that ends each sequence)

Decided on token ids after tokenising, so it is exact: on a causal backbone a token's hidden state depends on the tokens
before it and on nothing else, so that what sequences have in common need be computed once. Candidates of one prompt
share its tokens; templates and system prompts make a second level. Knows nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quorum_model.prefix_store import Block

MIN_SHARED_TOKENS = 16
"""A run shorter than this is repeated rather than shared: it saves little, and costs attention calls. Not tuned."""

_LARGEST_PASS = 6
"""Of a pass that shares a beginning, in beginnings: what each such pass computes again is a sixth of it."""

TokenIds = Sequence[int]


def room_for(token_budget: int, shared: int) -> int:
    """Most tokens of a pass whose sequences all begin with the same `shared` ones.

    The budget, or more where a pass of that size would hold little but the beginning: to split candidates of a long
    prompt is to compute it again for each.
    """
    return max(token_budget, _LARGEST_PASS * shared) if shared >= MIN_SHARED_TOKENS else token_budget


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive tokens. parent: index of the run whose tokens come right before these, or None at a beginning.

    stored: blocks of the tokens before a beginning, which need not be computed: see prefix_store.py.
    """

    tokens: TokenIds
    parent: int | None = None
    stored: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class PrefixForest:
    """runs: depth first, so that a run comes after its parent. leaves: for each sequence, the run that ends it.

    wanted: blocks to fill: a sequence, the place of the block's first token among its computed ones, and the block.
    """

    runs: tuple[Run, ...]
    leaves: tuple[int, ...]
    wanted: tuple[tuple[int, int, Block], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that have to be computed."""
        return sum(len(run.tokens) for run in self.runs)

    def path(self, run: int) -> list[int]:
        """The runs from a beginning to this one."""
        path = [run]
        while (parent := self.runs[path[-1]].parent) is not None:
            path.append(parent)
        return path[::-1]


def plain_forest(sequences: Sequence[TokenIds]) -> PrefixForest:
    """Nothing shared: every sequence is a run of its own."""
    return PrefixForest(tuple(Run(sequence) for sequence in sequences), tuple(range(len(sequences))))


def common_prefix(one: TokenIds, other: TokenIds) -> int:
    """How many tokens two sequences begin with alike; by bisection, since slices are compared at C speed."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def share_prefixes(sequences: Sequence[list[int]], min_shared: int = MIN_SHARED_TOKENS) -> PrefixForest:
    """The forest of the sequences' common beginnings.

    Args:
        sequences: B non-empty lists of token ids (lists, all of them: what is compared is slices).
        min_shared: shortest run that is shared rather than repeated.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    leaves = [0] * len(sequences)
    runs: list[Run] = []
    # A group: its place in `order`, where its sequences are known to agree up to, how far that is in runs already, and
    # the run they hang on. A stack, not recursion: a chain of prefixes may be as deep as the batch is large.
    stack: list[tuple[int, int, int, int | None]] = [(0, len(order), 0, None)] if order else []
    while stack:
        low, high, written, parent = stack.pop()
        first, last = sequences[order[low]], sequences[order[high - 1]]
        agreed = common_prefix(first, last)  # in sorted order the ends of a group differ first
        is_one = agreed == len(first) == len(last)  # a single sequence, or several equal ones
        if agreed - written >= (1 if is_one else min_shared):
            runs.append(Run(first[written:agreed], parent))
            written, parent = agreed, len(runs) - 1
        groups = []
        start = low
        while start < high:
            sequence = sequences[order[start]]
            if len(sequence) == written and parent is not None:
                leaves[order[start]] = parent
                start += 1
                continue
            end = start + 1
            if len(sequence) == agreed:  # it ends where the others go on, too early to be shared with them
                while end < high and len(sequences[order[end]]) == agreed:
                    end += 1
            else:
                while end < high and sequences[order[end]][agreed] == sequence[agreed]:
                    end += 1
            groups.append((start, end, written, parent))
            start = end
        stack.extend(reversed(groups))
    return PrefixForest(tuple(runs), tuple(leaves))
