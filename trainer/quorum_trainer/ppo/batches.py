"""Completions behind their prompts, padded to one tensor: prompts to the left, completions to the right. Pure.

    [(prompt ids, completion ids)]  --pad-->  Padded (B, P + R)

So the completions of a batch are its last R columns, whatever the prompts' lengths, and one slice of the logits is all
that is needed of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of its completion; neither is empty."""


@dataclass(frozen=True, slots=True)
class Padded:
    """ids, attention: (B, P + R), attention 0 where there is padding. mask: (B, R), True at a completion's tokens."""

    ids: Tensor
    attention: Tensor
    mask: Tensor

    @property
    def width(self) -> int:
        """R, tokens of the longest completion."""
        return self.mask.shape[1]

    @property
    def completion_ids(self) -> Tensor:
        """(B, R); padding is some token."""
        return self.ids[:, -self.width :]

    @property
    def positions(self) -> Tensor:
        """(B, P + R): of a sequence's tokens from 0; padding before them has 0."""
        return (self.attention.cumsum(-1) - 1).clamp(min=0)


def pad(pairs: Sequence[Pair], pad_id: int, device: torch.device) -> Padded:
    """One batch, in the order given.

    Args:
        pairs: at least one.
        pad_id: any token: padding is never attended to.
        device: of the tensors.
    """
    before = max(len(prompt) for prompt, _ in pairs)
    behind = max(len(completion) for _, completion in pairs)
    ids = torch.full((len(pairs), before + behind), pad_id, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(pairs):
        own = torch.tensor([*prompt, *completion], dtype=torch.long)
        start = before - len(prompt)
        ids[row, start : start + len(own)] = own
        attention[row, start : start + len(own)] = 1
    mask = attention[:, before:].bool()
    return Padded(ids.to(device), attention.to(device), mask.to(device))


def cut(pairs: Sequence[Pair], indices: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Parts of `indices`, of like lengths together, each of at most so many padded tokens, or of one pair.

    Args:
        pairs: what the indices are of.
        indices: which to take.
        max_tokens: rows times columns of a part.
    """
    order = sorted(indices, key=lambda index: (sum(map(len, pairs[index])), index))
    part: list[int] = []
    before = behind = 0
    for index in order:
        prompt, completion = pairs[index]
        wider = max(before, len(prompt)), max(behind, len(completion))
        if part and sum(wider) * (len(part) + 1) > max_tokens:
            yield part
            part, wider = [], (len(prompt), len(completion))
        part.append(index)
        before, behind = wider
    if part:
        yield part


def stack(rows: Sequence[Tensor], width: int | None = None) -> Tensor:
    """Vectors of unlike lengths as one tensor (B, R), zeros behind them."""
    width = max((len(row) for row in rows), default=0) if width is None else width
    out = torch.zeros(len(rows), width, dtype=rows[0].dtype if rows else torch.float32)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row
    return out
