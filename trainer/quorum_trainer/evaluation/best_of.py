"""What picking the best of n candidates by a reward is worth, in the candidates' gold.

    rewards, gold (N,)  --best_of_n-->  expected gold of the pick among n random candidates of the pool

Ties of the reward share: the pick is then a random one of them. Knows no modes beyond `Scoring`, and no files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from quorum_trainer.evaluation.scorings import MEAN, Scoring

NUM_SUBSETS = 200
"""Random subsets of a pool, where the reward of a candidate depends on the others and no exact estimator exists."""

FloatArray = NDArray[np.float64]


def best_of_n(rewards: FloatArray, gold: FloatArray, n: int) -> float:
    """Expected gold of the highest reward among n of the N candidates, over all subsets of size n.

    The unbiased estimator of Coste et al. (arXiv 2310.02743, appendix B): with candidates in ascending order of
    reward, R_n = sum over i from n to N of C(i-1, n-1) / C(N, n) * gold_i.

    Args:
        rewards: shape (N,); of a candidate alone, not relative to the others.
        gold: shape (N,).
        n: 1 to N.
    """
    order = np.argsort(rewards, kind="stable")
    _, block = np.unique(rewards, return_inverse=True)
    block_gold = np.bincount(block, weights=gold) / np.bincount(block)
    places = np.arange(n, len(gold) + 1)
    return float(_subset_shares(places, n, len(gold)) @ block_gold[block[order]][n - 1 :])


def _subset_shares(places: NDArray[np.int64], n: int, total: int) -> FloatArray:
    """C(i-1, n-1) / C(total, n) by logarithms: the binomials themselves overflow in large pools."""

    def log_choose(a: NDArray[np.int64] | int, b: int) -> FloatArray:
        return np.asarray(gammaln(np.asarray(a) + 1.0) - gammaln(b + 1.0) - gammaln(np.asarray(a) - b + 1.0))

    return np.asarray(np.exp(log_choose(places - 1, n - 1) - log_choose(total, n)))


def gold_of_picks(rewards: FloatArray, gold: FloatArray) -> FloatArray:
    """Gold of the candidate with the highest reward; the mean where several share it.

    Args:
        rewards: shape (..., N).
        gold: shape (..., N).

    Returns:
        Shape (...).
    """
    top = rewards == rewards.max(axis=-1, keepdims=True)
    return np.asarray((gold * top).sum(axis=-1) / top.sum(axis=-1))


def random_orders(size: int, seed: int) -> NDArray[np.int64]:
    """`NUM_SUBSETS` random orders of a pool, shape (S, N): the first n of each are a subset, nested over n."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(size), (NUM_SUBSETS, 1)), axis=1)


def best_of_n_of(scoring: Scoring, members: FloatArray, gold: FloatArray, n: int, orders: NDArray[np.int64]) -> float:
    """Expected gold of the pick among n candidates under a scoring.

    Exact where a candidate's reward is its own or n is the whole pool. Where rewards are relative to the other n - 1,
    the mean over random subsets, as a difference from the mean's pick in the same subsets: the mean's ranking does not
    depend on the group, so its expectation is known exactly, and what the subsets owe to chance cancels.

    Args:
        scoring: mode, beta, centring.
        members: calibrated scores, shape (K, N).
        gold: shape (N,).
        n: 1 to N.
        orders: see `random_orders`, shape (S, N).
    """
    if scoring.center == "none" or n == len(gold):
        return best_of_n(scoring.rewards(members), gold, n)
    by_mean = MEAN.rewards(members)
    subsets = orders[:, :n]
    picks = gold_of_picks(scoring.rewards(members[:, subsets]), gold[subsets])
    return best_of_n(by_mean, gold, n) + float(np.mean(picks - gold_of_picks(by_mean[subsets], gold[subsets])))


def sizes_below(largest: int) -> list[int]:
    """1, 2, 4, ... below the size of the largest pool."""
    return [2**power for power in range(largest.bit_length()) if 2**power < largest]
