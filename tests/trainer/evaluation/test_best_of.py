"""Best-of-n against every subset there is."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest

from quorum_model.calibration import center_group
from quorum_trainer.evaluation.best_of import (
    best_of_n,
    best_of_n_of,
    ladder,
    random_orders,
    sizes_below,
    values_of_picks,
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


@pytest.mark.parametrize("levels", [1000, 3])  # 3: many ties
def test_the_estimator_is_the_mean_over_all_subsets(levels: int) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rewards, values = rng.integers(0, levels, 7).astype(float), rng.normal(size=(2, 7))
        expected = [[over_all_subsets(rewards, one, n) for n in range(1, 8)] for one in values]
        # Products of at most seven ratios, sums of seven numbers of order 1: 1e-14 is some fifty roundings.
        np.testing.assert_allclose(best_of_n(rewards, values, range(1, 8)), expected, rtol=0, atol=1e-14)


def test_a_tie_is_the_mean_over_its_random_orders() -> None:
    rewards, gold = np.array([1.0, 1.0, 1.0, 0.0, 1.0]), np.array([4.0, 0.0, 1.0, 9.0, 2.0])
    # Ties broken by a first place that every order of the candidates gives to another.
    broken = [best_of_n(rewards + np.array(order) * 1e-6, gold, range(1, 6)) for order in permutations(range(5))]
    np.testing.assert_allclose(best_of_n(rewards, gold, range(1, 6)), np.mean(broken, axis=0), rtol=0, atol=1e-13)


def test_large_pools_keep_their_digits() -> None:
    gold, sizes = np.linspace(0, 1, 4000), [1, 2, 2000, 3999, 4000]
    # The expected maximum of n of N evenly spaced values, by the order statistic: (n (N+1)/(n+1) - 1) / (N-1).
    expected = [(n * 4001 / (n + 1) - 1) / 3999 for n in sizes]
    # 4,000 ratios in a row, each rounded: about 60 roundings as a random walk, 1e-14; ten times that.
    np.testing.assert_allclose(best_of_n(gold, gold, sizes), expected, rtol=1e-13)


def test_large_pools_agree_with_drawing() -> None:
    rng = np.random.default_rng(3)
    gold = rng.normal(size=1200)
    rewards = np.round(gold + rng.normal(size=1200), 1)  # ties
    subsets = rng.permuted(np.tile(np.arange(1200), (2000, 1)), axis=1)
    for n in (5, 100, 700):
        picks = values_of_picks(rewards[subsets[:, :n]], gold[subsets[:, :n]])
        error = np.std(picks) / np.sqrt(len(picks))
        assert best_of_n(rewards, gold, [n])[0] == pytest.approx(np.mean(picks), abs=4 * error)


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
    estimate = best_of_n_of(scoring, members, gold, [3], orders)[0]
    # 20,000 draws of the 56 subsets: four standard errors of the mean pick; what is estimated, the difference from the
    # mean's pick, varies less.
    tolerance = 4 * np.std(picks) / np.sqrt(len(orders))
    assert estimate == pytest.approx(np.mean(picks), abs=tolerance)
    assert (
        abs(best_of_n(members.mean(axis=0), gold, [3])[0] - np.mean(picks)) > 2 * tolerance
    )  # the mean picks otherwise


def test_the_whole_pool_and_one_candidate_are_exact() -> None:
    rng = np.random.default_rng(6)
    members, gold = rng.normal(size=(4, 8)), rng.normal(size=8)
    lcb, orders = Scoring("lcb", 1.0, "group"), random_orders(8, seed=0)
    centred, _ = center_group(members, [0] * 8)
    one, whole = best_of_n_of(lcb, members, gold, [1, 8], orders)
    assert whole == gold[np.argmax(Scoring("lcb", 1.0).rewards(centred))]
    assert one == pytest.approx(gold.mean(), abs=1e-12)


def test_the_means_pick_does_not_depend_on_centring() -> None:
    rng = np.random.default_rng(7)
    members, gold = rng.normal(size=(4, 8)), rng.normal(size=8)
    orders = random_orders(8, seed=0)
    plain = best_of_n_of(Scoring("mean"), members, gold, [3, 5], orders)
    centred = best_of_n_of(Scoring("mean", None, "group"), members, gold, [3, 5], orders)
    np.testing.assert_allclose(centred, plain, rtol=0, atol=1e-12)


def test_several_values_are_those_of_one_pick() -> None:
    rng = np.random.default_rng(8)
    members, values = rng.normal(size=(3, 9)), rng.normal(size=(2, 9))
    orders, scoring = random_orders(9, seed=0), Scoring("lcb", 1.0, "group")
    together = best_of_n_of(scoring, members, values, [1, 4, 9], orders)
    apart = [best_of_n_of(scoring, members, one, [1, 4, 9], orders) for one in values]
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-15)  # sums in another order


def test_orders_are_permutations_that_repeat_with_their_seed() -> None:
    orders = random_orders(6, seed=2)
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    assert np.array_equal(orders, random_orders(6, seed=2))
    assert not np.array_equal(orders, random_orders(6, seed=3))


def test_picks_by_hand() -> None:
    rewards, gold = np.array([[1.0, 2.0, 2.0], [3.0, 0.0, 0.0]]), np.array([[5.0, 1.0, 2.0], [5.0, 1.0, 2.0]])
    assert values_of_picks(rewards, gold).tolist() == [1.5, 5.0]
    assert values_of_picks(rewards, np.stack([gold, -gold])).tolist() == [[1.5, 5.0], [-1.5, -5.0]]
    assert sizes_below(12) == [1, 2, 4, 8]
    assert sizes_below(4) == [1, 2]
    assert ladder(13) == [1, 2, 3, 4, 6, 8, 12, 13]
    assert ladder(1) == [1]
    assert ladder(5, extra=[5, 7]) == [1, 2, 3, 4, 5]
