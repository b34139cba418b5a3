"""Gold of what ensembles pick on pools of candidates, with intervals over prompts and draws.

    Ensemble (D, K, N), [Pool]  --gold_of_picks-->  (S, D, Q)  --two_way-->  Estimate

Shapes: `S` scorings, `D` draws, `Q` pools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from ensembles import Ensemble, FloatArray
from texts import REFERENCE, Pool

from quorum_trainer.evaluation.best_of import best_of_n, best_of_n_of, random_orders, values_of_picks
from quorum_trainer.evaluation.bootstrap import RESAMPLES, SEED, Estimate, interval
from quorum_trainer.evaluation.scorings import MEAN, Scoring

BETAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
NUM_SUBSETS_DRAWS = 5
"""Draws whose curves are computed where rewards are relative to a group: each n is many subsets then."""


def grid(size: int) -> list[Scoring]:
    """Every mode and beta, uncentred and centred by group; the mean first. One member has the mean alone."""
    if size == 1:
        return [MEAN]
    plain = [MEAN, Scoring("median"), Scoring("min")]
    plain += [Scoring(mode, beta) for mode in ("lcb", "uwo", "softmin") for beta in BETAS]
    return plain + [replace(one, center="group") for one in plain[1:]]


def without_systems(pools: Sequence[Pool]) -> list[Pool]:
    """The pools without FuseChat's answers and the reference's: its gold is 0.5 by definition, theirs far above all."""
    return [_filtered(pool, lambda name: "FuseChat" not in name and name != REFERENCE) for pool in pools]


def _filtered(pool: Pool, keep: Callable[[str], bool]) -> Pool:
    kept = [index for index, name in enumerate(pool.generators) if keep(name)]
    return Pool(
        pool.prompt,
        tuple(pool.columns[index] for index in kept),
        tuple(pool.gold[index] for index in kept),
        tuple(pool.chars[index] for index in kept),
        tuple(pool.generators[index] for index in kept),
    )


def gold_of_picks(ensemble: Ensemble, pools: Sequence[Pool], scorings: Sequence[Scoring]) -> FloatArray:
    """Gold of the pick among all candidates: shape (S, D, Q)."""
    result = np.empty((len(scorings), len(ensemble.members), len(pools)))
    for place, pool in enumerate(pools):
        members = ensemble.members[:, :, list(pool.columns)].transpose(1, 0, 2)
        gold = np.array(pool.gold)
        for index, scoring in enumerate(scorings):
            result[index, :, place] = values_of_picks(scoring.rewards(members), gold)
    return result


def gold_of_members(ensemble: Ensemble, pools: Sequence[Pool]) -> FloatArray:
    """Gold of the picks of single members, each alone, on average over them: shape (D, Q)."""
    columns = [
        values_of_picks(ensemble.alone[:, :, list(pool.columns)], np.array(pool.gold)).mean(axis=1) for pool in pools
    ]
    return np.stack(columns, axis=1)


def curve(ensemble: Ensemble, pools: Sequence[Pool], scoring: Scoring, sizes: Sequence[int]) -> FloatArray:
    """Gold and characters of the pick among n candidates: shape (2, D, Q, M); fewer draws where it takes subsets."""
    draws = ensemble.members if scoring.center == "none" else ensemble.members[:NUM_SUBSETS_DRAWS]
    result = np.empty((2, len(draws), len(pools), len(sizes)))
    for place, pool in enumerate(pools):
        values = np.array([pool.gold, pool.chars], np.float64)
        own = [min(size, len(pool.columns)) for size in sizes]
        orders = random_orders(len(pool.columns), seed=place)
        for index, members in enumerate(draws):
            result[:, index, place] = best_of_n_of(scoring, members[:, list(pool.columns)], values, own, orders)
    return result


def baselines(pools: Sequence[Pool], sizes: Sequence[int]) -> dict[str, FloatArray]:
    """Gold of the pick by chance, by length, and by gold itself: (Q, M) each."""
    rewards: dict[str, Callable[[Pool], FloatArray]] = {
        "random": lambda pool: np.zeros(len(pool.gold)),
        "longest": lambda pool: np.array(pool.chars, np.float64),
        "oracle": lambda pool: np.array(pool.gold),
    }
    return {
        name: np.stack(
            [best_of_n(by(pool), np.array(pool.gold), [min(size, len(pool.gold)) for size in sizes]) for pool in pools]
        )
        for name, by in rewards.items()
    }


def two_way(values: FloatArray) -> Estimate:
    """The mean with its interval over draws and prompts: both are drawn again, independently (shape (D, Q))."""
    rng = np.random.default_rng(SEED)
    num_draws, num_pools = values.shape
    draws = rng.multinomial(num_draws, np.full(num_draws, 1 / num_draws), size=RESAMPLES) / num_draws
    pools = rng.multinomial(num_pools, np.full(num_pools, 1 / num_pools), size=RESAMPLES) / num_pools
    resampled = np.einsum("rd,dq,rq->r", draws, values, pools, optimize=True)
    return interval(float(values.mean()), resampled)
