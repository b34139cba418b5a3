"""Figures of Best-of-N: gold and length of the pick under every scoring, against random, longest, shortest and oracle.

    [ScoredRow] of N responses with gold  --pool_figures-->  JSON-ready figures by group and n

Files of one chosen response against three are pools with gold 1 and 0: at full size the figure is the accuracy of
picking a chosen one, and chance is `random`. Keys are documented in `report`. Knows no files.

Shapes: `Q` pools, `V` values of a candidate, `M` sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quorum_trainer.evaluation.best_of import NUM_SUBSETS, best_of_n, best_of_n_of, ladder, random_orders, sizes_below
from quorum_trainer.evaluation.bootstrap import FloatArray, IntArray, band, cluster_ids, mean_estimate, resampled_means
from quorum_trainer.evaluation.groups import ALL, Mask, group_rows, is_whole
from quorum_trainer.evaluation.overoptimization import gao_figures, kl_of_best_of
from quorum_trainer.evaluation.scores import ScoredRow
from quorum_trainer.evaluation.scorings import Scoring

FULL = "full"
"""The n that is each pool's own size."""

GOLD, CHARS, REWARD = 0, 1, 2
"""Values of the pick. The reward exists where it is a candidate's own, and compares over n for one policy alone."""

_Pick = Callable[[int, Sequence[int]], FloatArray]
"""(index of the pool, M sizes) -> expected values of the pick (V, M)."""


@dataclass(frozen=True, slots=True)
class _Scorer:
    """What picks: its kind and name in the report, and whether each n is cheap (exact) or a drawing of subsets."""

    kind: str
    name: str
    pick: _Pick
    is_exact: bool = True

    @property
    def has_reward(self) -> bool:
        """Whether its reward is a model's, and not relative to a group."""
        return self.is_exact and self.kind != "baselines"


@dataclass(frozen=True, slots=True)
class _Group:
    """Some of the pools. smallest: up to this n all of them count, so curves end there; None for parts of a file."""

    mask: Mask
    clusters: IntArray
    smallest: int | None


def pool_figures(
    scored: Sequence[ScoredRow],
    scorings: Sequence[Scoring],
    member_names: Sequence[str],
    *,
    is_one_policy: bool = False,
) -> dict[str, dict[str, Any]]:
    """Gold and length of the pick by group, scoring and n.

    Args:
        scored: Q rows.
        scorings: uncentred; those other than the mean are also shown centred by group, as POST /rank does.
        member_names: K of them.
        is_one_policy: candidates of a file are samples of one policy: KL, rewards and Gao's fit are added.
    """
    sizes = np.array([len(one.row.gold) for one in scored])
    keys = [one.row.prompt_key for one in scored]
    groups = {
        name: _Group(
            mask,
            cluster_ids([key for key, kept in zip(keys, mask, strict=True) if kept]),
            int(sizes[mask].min()) if is_whole(name) else None,
        )
        for name, mask in group_rows([one.row for one in scored]).items()
    }
    # Several files may be several policies: what they have together is no policy's curve.
    own_policy = {name for name, group in groups.items() if is_one_policy and group.smallest is not None}
    if len({one.row.file for one in scored}) > 1:
        own_policy.discard(ALL)
    figures = {name: _describe(group, sizes, name in own_policy) for name, group in groups.items()}
    steps = [*map(str, sizes_below(int(sizes.max()))), FULL]
    for scorer in _scorers(scored, scorings, member_names):
        values = _by_size(scorer, sizes, {group.smallest for group in groups.values() if group.smallest})
        for name, group in groups.items():
            own, figure = values[group.mask], figures[name]
            figure[scorer.kind][scorer.name] = _table(own, sizes[group.mask], group.clusters, steps)
            if group.smallest is not None:
                figure["curves"][scorer.kind][scorer.name] = _curve(
                    own, group, with_reward=name in own_policy and scorer.has_reward
                )
            if name in own_policy:
                figure["policy"]["fits"][scorer.kind][scorer.name] = _fit(own, group)
    return figures


def _by_kind() -> dict[str, dict[str, Any]]:
    return {"scorings": {}, "members": {}, "baselines": {}}


def _describe(group: _Group, sizes: IntArray, is_policy: bool) -> dict[str, Any]:
    own = sizes[group.mask]
    every = list(range(1, int(own.min()) + 1))
    return {
        "num_pools": len(own),
        "num_prompts": int(group.clusters.max()) + 1,
        "smallest_pool": int(own.min()),
        "largest_pool": int(own.max()),
        **_by_kind(),
        "curves": {"num_subsets": NUM_SUBSETS, **_by_kind()} if group.smallest is not None else None,
        "policy": {"n": every, "kl": kl_of_best_of(every).tolist(), "fits": _by_kind()} if is_policy else None,
    }


def _scorers(
    scored: Sequence[ScoredRow], scorings: Sequence[Scoring], member_names: Sequence[str]
) -> Iterator[_Scorer]:
    """What is compared."""
    chars = [np.array([float(len(text)) for text in one.row.responses]) for one in scored]
    values = [np.stack([np.array(one.row.gold), lengths]) for one, lengths in zip(scored, chars, strict=True)]
    orders = [random_orders(values[pool].shape[1], seed=pool) for pool in range(len(scored))]

    def by(scoring: Scoring) -> _Pick:
        return lambda pool, sizes: best_of_n_of(scoring, scored[pool].members, values[pool], sizes, orders[pool])

    def by_rewards(rewards: Callable[[int], FloatArray]) -> _Pick:
        return lambda pool, sizes: best_of_n(rewards(pool), np.vstack([values[pool], rewards(pool)]), sizes)

    def by_own(scoring: Scoring) -> _Pick:
        return by_rewards(lambda pool: scoring.rewards(scored[pool].members))

    def by_member(index: int) -> _Pick:
        return by_rewards(lambda pool: scored[pool].members[index])

    yield from (_Scorer("scorings", scoring.label, by_own(scoring)) for scoring in dict.fromkeys(scorings))
    for scoring in dict.fromkeys(scorings):
        if scoring.mode != "mean":
            centred = replace(scoring, center="group")
            yield _Scorer("scorings", centred.label, by(centred), is_exact=False)
    yield from (_Scorer("members", name, by_member(index)) for index, name in enumerate(member_names))
    baselines: dict[str, Callable[[int], FloatArray]] = {
        "random": lambda pool: np.zeros(len(chars[pool])),
        "longest": lambda pool: chars[pool],
        "shortest": lambda pool: -chars[pool],
        "oracle": lambda pool: values[pool][GOLD],
    }
    yield from (_Scorer("baselines", name, by_rewards(rewards)) for name, rewards in baselines.items())


def _by_size(scorer: _Scorer, sizes: IntArray, needed: set[int]) -> FloatArray:
    """Values of the pick of every pool: shape (Q, V, largest + 1) by n; NaN where a pool is smaller or n was not tried.

    Args:
        scorer: exact ones are computed for all n, others for a ladder of them.
        sizes: N of each pool, shape (Q,).
        needed: sizes that the ladder must hold.
    """
    num_values = 3 if scorer.is_exact else 2
    values = np.full((len(sizes), num_values, int(sizes.max()) + 1), np.nan)
    for pool, size in enumerate(sizes.tolist()):
        tried = list(range(1, size + 1)) if scorer.is_exact else ladder(size, needed)
        values[pool][:, tried] = scorer.pick(pool, tried)
    return values


def _table(values: FloatArray, sizes: IntArray, clusters: IntArray, steps: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Means over the pools that are large enough, with their number: at powers of two, and of whole pools."""
    figures: dict[str, dict[str, Any]] = {}
    for step in steps:
        places = sizes if step == FULL else np.full(len(sizes), int(step))
        own = np.take_along_axis(values, places[:, None, None], axis=2)[..., 0]
        known = ~np.isnan(own[:, GOLD])
        if known.any():
            _, present = np.unique(clusters[known], return_inverse=True)
            figures[step] = {
                **mean_estimate(own[known, GOLD], present).to_json(),
                "num_pools": int(known.sum()),
                "chars": mean_estimate(own[known, CHARS], present).to_json(),
            }
    return figures


def _tried(values: FloatArray, group: _Group) -> list[int]:
    """The n up to the smallest pool at which every pool has a value."""
    smallest = group.smallest or 0
    return [n for n in range(1, smallest + 1) if not np.isnan(values[:, GOLD, n]).any()]


def _curve(values: FloatArray, group: _Group, *, with_reward: bool) -> dict[str, Any]:
    tried = _tried(values, group)
    curve: dict[str, Any] = {
        "n": tried,
        "gold": band(values[:, GOLD, tried], group.clusters),
        "chars": band(values[:, CHARS, tried], group.clusters),
    }
    if with_reward:
        curve["reward"] = band(values[:, REWARD, tried], group.clusters)
    return curve


def _fit(values: FloatArray, group: _Group) -> dict[str, Any] | None:
    """Gao's fit on the ladder of sizes, for all scorings alike."""
    sizes = ladder(group.smallest or 1)
    own = values[:, GOLD, sizes]
    return gao_figures(sizes, own.mean(axis=0), resampled_means(own, group.clusters))
