"""Which pairs a member sees, and when: every member's own order from its own seed.

    seeds  --endless_order-->  an order a member  --step_rows-->  rows of token ids for one step

Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from quorum_trainer.data import EncodedPair


def num_steps(num_pairs: int, batch_pairs: int, epochs: float) -> int:
    """Optimiser steps of a phase; the last batch of an epoch runs over into the next."""
    return max(1, math.ceil(num_pairs * epochs / batch_pairs))


def endless_order(num_pairs: int, seed: int) -> Iterator[int]:
    """Indices of pairs: every epoch a fresh permutation from one stream."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(num_pairs, generator=generator).tolist()


def step_rows(orders: Sequence[Iterator[int]], pairs: Sequence[EncodedPair], batch_pairs: int) -> list[list[list[int]]]:
    """The next batch of every order, as rows of sequences: all chosen, then all rejected.

    Args:
        orders: one that all members share, or one a member.
        pairs: what the orders index.
        batch_pairs: P, pairs a member and step.

    Returns:
        A row an order, of 2 P sequences.
    """
    rows = []
    for order in orders:
        batch = [pairs[next(order)] for _ in range(batch_pairs)]
        rows.append([pair.chosen for pair in batch] + [pair.rejected for pair in batch])
    return rows
