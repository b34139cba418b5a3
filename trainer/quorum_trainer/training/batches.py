"""Which pairs a member sees, and when: every member's own order from its own seed.

    pairs, seeds  --PairOrders-->  one Batch a step: rows of token ids, and what the loss needs to know of them

An order is a pure function of its seed, so that a resumed run goes on where it stopped by skipping what was seen.
Knows nothing of models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from quorum_trainer.data import EncodedPair
from quorum_trainer.training.losses import PairTerms

Rows = list[list[list[int]]]


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's pairs: R rows (one, or a member's own each) of 2 P sequences, all chosen before all rejected."""

    rows: Rows
    terms: PairTerms

    @property
    def num_pairs(self) -> int:
        """P."""
        return len(self.rows[0]) // 2

    def part(self, pairs: slice) -> Batch:
        """Some of the pairs of every row."""
        half = self.num_pairs
        rows = [row[:half][pairs] + row[half:][pairs] for row in self.rows]
        return Batch(rows, self.terms.part(pairs))


def num_steps(weights: Sequence[float], batch_pairs: int, epochs: float) -> int:
    """Optimiser steps of a phase; the last batch of an epoch runs over into the next."""
    return max(1, math.ceil(round(sum(weights) * epochs / batch_pairs, 9)))


def endless_order(weights: Sequence[float], seed: int) -> Iterator[int]:
    """Indices of pairs: every epoch a fresh permutation, from one stream.

    Args:
        weights: how often each pair is seen an epoch: the whole part always, the rest by chance, drawn every epoch.
        seed: of the stream.
    """
    generator = torch.Generator().manual_seed(seed)
    often = torch.tensor(weights, dtype=torch.float64)
    fraction = often - often.floor()
    while True:
        copies = often.floor()
        if fraction.any():
            copies += torch.rand(len(often), generator=generator, dtype=torch.float64) < fraction
        indices = torch.repeat_interleave(copies.long())
        yield from indices[torch.randperm(len(indices), generator=generator)].tolist()


def bootstrap_counts(num_pairs: int, seed: int) -> list[int]:
    """How often each pair is in a draw of `num_pairs` with replacement (Breiman 1996)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(num_pairs, (num_pairs,), generator=generator)
    return torch.bincount(drawn, minlength=num_pairs).tolist()


class PairOrders:
    """The batches of one phase.

    Args:
        pairs: the training pairs.
        seeds: one for an order that all members share, or one a member.
        shared: which of the two it is.
        bootstrap_seeds: one a member, or None: without it every member learns from every pair. In an order of its own
            a member meets its draw of the pairs; in a shared one the draw weighs the pairs in the member's loss.
        batch_pairs: P.
        margins: whether the pairs' margins count.
    """

    def __init__(
        self,
        pairs: Sequence[EncodedPair],
        seeds: Sequence[int],
        *,
        shared: bool,
        batch_pairs: int,
        bootstrap_seeds: Sequence[int] | None = None,
        margins: bool = False,
    ) -> None:
        self._pairs = pairs
        self._batch_pairs = batch_pairs
        self._margins = margins
        counts = [bootstrap_counts(len(pairs), seed) for seed in bootstrap_seeds or []]
        weights = [pair.weight for pair in pairs]
        self._loss_weights = torch.tensor(counts, dtype=torch.float32) if counts and shared else None
        draws = counts if counts and not shared else [[1] * len(pairs)] * len(seeds)
        self._orders = [
            endless_order([weight * count for weight, count in zip(weights, draw, strict=True)], seed)
            for seed, draw in zip(seeds, draws, strict=True)
        ]

    def skip(self, steps: int) -> None:
        """Pass over batches that were seen before a run was interrupted."""
        for order in self._orders:
            next(itertools.islice(order, steps * self._batch_pairs, steps * self._batch_pairs), None)

    def next(self, worker: int = 0, num_workers: int = 1) -> Batch:
        """The next batch, or one worker's share of it: every `num_workers`-th pair."""
        drawn = [[next(order) for _ in range(self._batch_pairs)][worker::num_workers] for order in self._orders]
        pairs = [[self._pairs[index] for index in row] for row in drawn]
        rows = [[pair.chosen for pair in row] + [pair.rejected for pair in row] for row in pairs]
        targets = torch.tensor([[0.5 if pair.tie else 1.0 for pair in row] for row in pairs])
        margins = torch.tensor([[self._margin(pair) for pair in row] for row in pairs])
        weights = torch.ones_like(targets) if self._loss_weights is None else self._loss_weights[:, drawn[0]]
        return Batch(rows, PairTerms(targets, margins, weights))

    def _margin(self, pair: EncodedPair) -> float:
        return pair.margin if self._margins and not pair.tie else 0.0


def longest_batch(pairs: Sequence[EncodedPair], batch_pairs: int) -> int:
    """Tokens of the largest batch that could be drawn: what memory must allow."""
    return sum(sorted((pair.num_tokens for pair in pairs), reverse=True)[:batch_pairs])


def weights_of(pairs: Sequence[EncodedPair]) -> list[float]:
    """How often each pair is seen an epoch."""
    return [pair.weight for pair in pairs]
