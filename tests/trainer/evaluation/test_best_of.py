"""Best-of-n against every subset there is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from quorum_model.calibration import center_group
from quorum_trainer.evaluation.best_of import (
    best_of_n,
    best_of_n_of,
    gold_of_picks,
    random_orders,
    sizes_below,
)
from quorum_trainer.evaluation.scorings import Scoring


def over_all_subsets(rewards: np.ndarray, gold: np.ndarray, n: int) -> float:
    """Every subset alike; ties share."""
    picks = []
    for subset in combinations(range(len(gold)), n):
        best = max(rewards[i] for i in subset)
        tied = [gold[i] for i in subset if rewards[i] == best]
        picks.append(sum(tied) / len(tied))
    return float(np.mean(picks))


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize("levels", [1000, 3])  # 3: many ties
def test_the_estimator_is_the_mean_over_all_subsets(n: int, levels: int) -> None:
    rng = np.random.default_rng(n)
    rewards, gold = rng.integers(0, levels, 7).astype(float), rng.normal(size=7)
    # Logarithms of factorials: 1e-12 is a thousand roundings.
    assert best_of_n(rewards, gold, n) == pytest.approx(over_all_subsets(rewards, gold, n), abs=1e-12)


def test_large_pools_do_not_overflow() -> None:
    gold = np.linspace(0, 1, 4000)
    # The expected maximum of n of N evenly spaced values, by the order statistic: (n (N+1)/(n+1) - 1) / (N-1).
    expected = (2000 * 4001 / 2001 - 1) / 3999
    assert best_of_n(gold, gold, 2000) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("mode", ["lcb", "softmin", "min", "median"])
def test_centred_rewards_depend_on_the_subset(mode: str) -> None:
    rng = np.random.default_rng(13)
    members, gold = rng.normal(size=(4, 8)), rng.normal(size=8)
    scoring = Scoring(mode, 1.0 if mode in ("lcb", "softmin") else None, "group")  # type: ignore[arg-type]
    picks = []
    for subset in combinations(range(8), 3):
        own, _ = center_group(members[:, list(subset)], [0, 0, 0])
        rewards = Scoring(scoring.mode, scoring.beta).rewards(own)
        picks.append(gold[list(subset)][int(np.argmax(rewards))])
    orders = np.concatenate([random_orders(8, seed) for seed in range(100)])
    estimate = best_of_n_of(scoring, members, gold, 3, orders)
    # 20,000 draws of the 56 subsets: four standard errors of the mean pick; what is estimated, the difference from the
    # mean's pick, varies less.
    tolerance = 4 * np.std(picks) / np.sqrt(len(orders))
    assert estimate == pytest.approx(np.mean(picks), abs=tolerance)
    assert abs(best_of_n(members.mean(axis=0), gold, 3) - np.mean(picks)) > 2 * tolerance  # the mean picks otherwise


def test_the_whole_pool_and_one_candidate_are_exact() -> None:
    rng = np.random.default_rng(6)
    members, gold = rng.normal(size=(4, 8)), rng.normal(size=8)
    lcb, orders = Scoring("lcb", 1.0, "group"), random_orders(8, seed=0)
    centred, _ = center_group(members, [0] * 8)
    assert best_of_n_of(lcb, members, gold, 8, orders) == gold[np.argmax(Scoring("lcb", 1.0).rewards(centred))]
    assert best_of_n_of(lcb, members, gold, 1, orders) == pytest.approx(gold.mean(), abs=1e-12)


def test_the_means_pick_does_not_depend_on_centring() -> None:
    rng = np.random.default_rng(7)
    members, gold = rng.normal(size=(4, 8)), rng.normal(size=8)
    orders = random_orders(8, seed=0)
    plain = best_of_n_of(Scoring("mean"), members, gold, 3, orders)
    assert best_of_n_of(Scoring("mean", None, "group"), members, gold, 3, orders) == pytest.approx(plain, abs=1e-12)


def test_orders_are_permutations_that_repeat_with_their_seed() -> None:
    orders = random_orders(6, seed=2)
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    assert np.array_equal(orders, random_orders(6, seed=2))
    assert not np.array_equal(orders, random_orders(6, seed=3))


def test_picks_by_hand() -> None:
    rewards, gold = np.array([[1.0, 2.0, 2.0], [3.0, 0.0, 0.0]]), np.array([[5.0, 1.0, 2.0], [5.0, 1.0, 2.0]])
    assert gold_of_picks(rewards, gold).tolist() == [1.5, 5.0]
    assert sizes_below(12) == [1, 2, 4, 8]
    assert sizes_below(4) == [1, 2]
