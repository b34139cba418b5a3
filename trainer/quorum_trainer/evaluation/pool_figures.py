"""Figures of Best-of-N: gold of the pick under every scoring, against picking at random, by length, and the oracle.

    [ScoredRow] of N responses with gold  --pool_figures-->  JSON-ready figures by group and n

Files of one chosen response against three are pools with gold 1 and 0: at full size the figure is the accuracy of
picking a chosen one, and chance is `random`. Keys are documented in `report`. Knows no files.

Shapes: `Q` pools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorum_trainer.evaluation.best_of import best_of_n, best_of_n_of, random_orders, sizes_below
from quorum_trainer.evaluation.bootstrap import FloatArray, IntArray, cluster_ids, mean_estimate
from quorum_trainer.evaluation.groups import group_rows
from quorum_trainer.evaluation.scores import ScoredRow
from quorum_trainer.evaluation.scorings import Scoring

FULL = "full"
"""The n that is each pool's own size."""

_Pick = Callable[[int, int], float]
"""(index of the pool, n) -> expected gold of the pick."""


def pool_figures(
    scored: Sequence[ScoredRow], scorings: Sequence[Scoring], member_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Gold of the pick by group, scoring and n.

    Args:
        scored: Q rows.
        scorings: uncentred; those other than the mean are also shown centred by group, as POST /rank does.
        member_names: K of them.
    """
    sizes = [len(one.row.gold) for one in scored]
    steps = [*map(str, sizes_below(max(sizes))), FULL]
    tables = {
        kind: {name: _by_size(pick, sizes, steps) for name, pick in picks.items()}
        for kind, picks in _picks(scored, scorings, member_names).items()
    }
    figures = {}
    for name, mask in group_rows([one.row for one in scored]).items():
        keys = [one.row.prompt_key for one, kept in zip(scored, mask, strict=True) if kept]
        own_sizes = np.array(sizes)[mask]
        figures[name] = {
            "num_pools": len(keys),
            "num_prompts": len(set(keys)),
            "smallest_pool": int(own_sizes.min()),
            "largest_pool": int(own_sizes.max()),
            **{
                kind: {scorer: _estimates(values, mask, keys) for scorer, values in table.items()}
                for kind, table in tables.items()
            },
        }
    return figures


def _picks(
    scored: Sequence[ScoredRow], scorings: Sequence[Scoring], member_names: Sequence[str]
) -> dict[str, dict[str, _Pick]]:
    """What is compared, by kind and name."""
    gold = [np.array(one.row.gold) for one in scored]
    chars = [np.array([float(len(text)) for text in one.row.responses]) for one in scored]
    orders = [random_orders(len(own), seed=index) for index, own in enumerate(gold)]
    centred = [replace(scoring, center="group") for scoring in scorings if scoring.mode != "mean"]

    def by(scoring: Scoring) -> _Pick:
        return lambda pool, n: best_of_n_of(scoring, scored[pool].members, gold[pool], n, orders[pool])

    def by_rewards(rewards: Callable[[int], FloatArray]) -> _Pick:
        return lambda pool, n: best_of_n(rewards(pool), gold[pool], n)

    def by_member(index: int) -> _Pick:
        return by_rewards(lambda pool: scored[pool].members[index])

    return {
        "scorings": {scoring.label: by(scoring) for scoring in dict.fromkeys([*scorings, *centred])},
        "members": {name: by_member(index) for index, name in enumerate(member_names)},
        "baselines": {
            "random": by_rewards(lambda pool: np.zeros(len(gold[pool]))),
            "longest": by_rewards(lambda pool: chars[pool]),
            "shortest": by_rewards(lambda pool: -chars[pool]),
            "oracle": by_rewards(lambda pool: gold[pool]),
        },
    }


def _by_size(pick: _Pick, sizes: Sequence[int], steps: Sequence[str]) -> dict[str, FloatArray]:
    """Gold of the pick of every pool: shape (Q,) for each n; NaN where the pool is smaller."""
    return {
        step: np.array(
            [
                pick(pool, size if step == FULL else int(step)) if step == FULL or int(step) <= size else np.nan
                for pool, size in enumerate(sizes)
            ]
        )
        for step in steps
    }


def _estimates(
    values: dict[str, FloatArray], mask: NDArray[np.bool_], keys: Sequence[str]
) -> dict[str, dict[str, float | int | None]]:
    """Mean over the pools of a group that are large enough, with their number."""
    figures: dict[str, dict[str, float | int | None]] = {}
    for step, by_pool in values.items():
        own = by_pool[mask]
        known = ~np.isnan(own)
        if known.any():
            clusters: IntArray = cluster_ids([key for key, kept in zip(keys, known, strict=True) if kept])
            figures[step] = {**mean_estimate(own[known], clusters).to_json(), "num_pools": int(known.sum())}
    return figures
