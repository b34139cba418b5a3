"""What picking the best of n candidates by a reward gives, for every n up to the size of a pool.

    rewards (N,), values (..., N)  --best_of_n-->  expected value of the pick among n random candidates, for each n

A value is anything that a candidate has: its gold, its length, its reward. Ties of the reward share: the pick is then a
random one of them. Knows no modes beyond `Scoring`, and no files.

Shapes: `N` candidates of a pool, `M` sizes to pick from, `S` random subsets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from quorum_trainer.evaluation.scorings import MEAN, Scoring

NUM_SUBSETS = 200
"""Random subsets of a pool, where the reward of a candidate depends on the others and no exact estimator exists."""

FloatArray = NDArray[np.float64]


def best_of_n(rewards: FloatArray, values: FloatArray, sizes: Sequence[int]) -> FloatArray:
    """Expected value of the candidate with the highest reward among n of the N, over all subsets of size n.

    The unbiased estimator of Nakano et al. (arXiv 2112.09332, appendix on best-of-n) and Coste et al. (arXiv
    2310.02743, appendix B): with candidates in ascending order of reward,
    R_n = sum over i from n to N of C(i-1, n-1) / C(N, n) * value_i. A tie counts as the mean over its random orders,
    which is the mean of its values at each of its places.

    Args:
        rewards: shape (N,); of a candidate alone, not relative to the others.
        values: shape (..., N).
        sizes: M times n, each 1 to N.

    Returns:
        Shape (..., M).
    """
    order = np.argsort(rewards, kind="stable")
    _, starts, counts = np.unique(rewards[order], return_index=True, return_counts=True)
    means = np.add.reduceat(values[..., order], starts, axis=-1) / counts
    return np.asarray(np.repeat(means, counts, axis=-1) @ _shares(tuple(sizes), len(rewards)).T)


@lru_cache(maxsize=8)
def _shares(sizes: tuple[int, ...], total: int) -> FloatArray:
    """C(i-1, n-1) / C(total, n), which is 0 for i < n: shape (M, total), of i from 1.

    From the last place down by ratios: it is n / total at i = total, and (i - n) / (i - 1) times as much one place
    below i. Binomials would overflow in large pools, and their logarithms lose digits; what underflows here is nothing.
    """
    n = np.array(sizes)[:, None]
    places = np.arange(total, 1, -1)
    ratios = np.maximum(places - n, 0) / (places - 1)
    shares = np.concatenate([n / total, n / total * np.cumprod(ratios, axis=1)], axis=1)[:, ::-1]
    shares.flags.writeable = False  # shared by all pools of this size
    return shares


def values_of_picks(rewards: FloatArray, values: FloatArray) -> FloatArray:
    """Value of the candidate with the highest reward; the mean where several share it.

    Args:
        rewards: shape (..., N).
        values: shape (..., N); axes before those of `rewards` are other kinds of value.

    Returns:
        Shape of `values` without its last axis.
    """
    top = rewards == rewards.max(axis=-1, keepdims=True)
    return np.asarray((values * top).sum(axis=-1) / top.sum(axis=-1))


def random_orders(size: int, seed: int) -> NDArray[np.int64]:
    """`NUM_SUBSETS` random orders of a pool, shape (S, N): the first n of each are a subset, nested over n."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(size), (NUM_SUBSETS, 1)), axis=1)


def best_of_n_of(
    scoring: Scoring, members: FloatArray, values: FloatArray, sizes: Sequence[int], orders: NDArray[np.int64]
) -> FloatArray:
    """Expected value of the pick among n candidates under a scoring.

    Exact where a candidate's reward is its own or n is the whole pool. Where rewards are relative to the other n - 1,
    the mean over random subsets, as a difference from the mean's pick in the same subsets: the mean's ranking does not
    depend on the group, so its expectation is known exactly, and what the subsets owe to chance cancels.

    Args:
        scoring: mode, beta, centring.
        members: calibrated scores, shape (K, N).
        values: shape (..., N).
        sizes: M times n, each 1 to N.
        orders: see `random_orders`, shape (S, N); not used where the result is exact.

    Returns:
        Shape (..., M).
    """
    rewards, total = scoring.rewards(members), len(members[0])
    if scoring.center == "none":
        return best_of_n(rewards, values, sizes)
    by_mean = MEAN.rewards(members)
    expected = best_of_n(by_mean, values, sizes)
    for place, n in enumerate(sizes):
        if n == total:
            expected[..., place] = values_of_picks(rewards, values)
        else:
            subsets = orders[:, :n]
            picked = values_of_picks(scoring.rewards(members[:, subsets]), values[..., subsets])
            by_the_mean = values_of_picks(by_mean[subsets], values[..., subsets])
            expected[..., place] += np.mean(picked - by_the_mean, axis=-1)
    return expected


def sizes_below(largest: int) -> list[int]:
    """1, 2, 4, ... below the size of the largest pool."""
    return [2**power for power in range(largest.bit_length()) if 2**power < largest]


def ladder(largest: int, extra: Iterable[int] = ()) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... and `largest` itself: sizes about evenly spaced on a logarithmic axis.

    Args:
        largest: N, at least 1.
        extra: further sizes; those above N are left out.
    """
    steps = {1, *(2**power for power in range(1, largest.bit_length()))}
    steps |= {3 * step // 2 for step in steps if step > 1}
    return sorted(step for step in {*steps, *extra, largest} if step <= largest)
