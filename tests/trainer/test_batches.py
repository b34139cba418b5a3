"""Orders of pairs: every epoch whole, weights and bootstrap as they should be, and nothing lost by skipping."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quorum_trainer.data import EncodedPair
from quorum_trainer.training.batches import PairOrders, bootstrap_counts, endless_order, num_steps


def make_pairs(num_pairs: int, **changes: object) -> list[EncodedPair]:
    return [EncodedPair([1, index], [2, index], "toy", 1, 1, **changes) for index in range(num_pairs)]  # type: ignore[arg-type]


@given(st.integers(1, 20), st.integers(0, 99))
def test_every_epoch_has_every_pair_once(num_pairs: int, seed: int) -> None:
    order = endless_order([1.0] * num_pairs, seed)
    for _ in range(3):
        assert sorted(itertools.islice(order, num_pairs)) == list(range(num_pairs))


def test_weights_are_how_often_a_pair_is_seen() -> None:
    order = endless_order([2.0, 0.5, 1.0], seed=1)
    seen = Counter(itertools.islice(order, 3500))  # 1,000 epochs of 3.5 pairs on average
    assert seen[0] / 1000 == pytest.approx(2.0, abs=0.05)  # an epoch more or less: se of the half is 0.016
    assert seen[1] / 1000 == pytest.approx(0.5, abs=0.05)
    assert seen[2] / 1000 == pytest.approx(1.0, abs=0.05)
    assert num_steps([2.0, 0.5, 1.0], batch_pairs=2, epochs=4) == 7


def test_skipping_is_as_good_as_reading() -> None:
    pairs = make_pairs(7)
    read, skipped = (PairOrders(pairs, [3, 4], shared=False, batch_pairs=3) for _ in range(2))
    for _ in range(5):
        read.next()
    skipped.skip(5)
    assert read.next().rows == skipped.next().rows


def test_workers_share_a_batch() -> None:
    pairs = make_pairs(8)
    whole = PairOrders(pairs, [3, 4], shared=False, batch_pairs=4).next()
    shares = [PairOrders(pairs, [3, 4], shared=False, batch_pairs=4).next(worker, 2) for worker in range(2)]
    for row in range(2):
        halves = [share.rows[row] for share in shares]
        chosen = sorted(halves[0][:2] + halves[1][:2])
        assert chosen == sorted(whole.rows[row][:4])
        assert sorted(halves[0][2:] + halves[1][2:]) == sorted(whole.rows[row][4:])


def test_a_member_alone_meets_what_it_meets_among_others() -> None:
    pairs = make_pairs(9)
    together = PairOrders(pairs, [3, 4], shared=False, batch_pairs=3, bootstrap_seeds=[5, 6])
    alone = PairOrders(pairs, [4], shared=False, batch_pairs=3, bootstrap_seeds=[6])
    for _ in range(6):
        assert together.next().rows[1] == alone.next().rows[0]


def test_bootstrap_in_an_order_of_its_own_is_a_draw_with_replacement() -> None:
    pairs = make_pairs(50)
    orders = PairOrders(pairs, [1], shared=False, batch_pairs=50, bootstrap_seeds=[2])
    seen = Counter(sequence[1] for sequence in orders.next().rows[0][:50])
    counts = bootstrap_counts(50, 2)
    assert seen == Counter({index: count for index, count in enumerate(counts) if count})
    assert sum(counts) == 50
    assert 0.2 < sum(count == 0 for count in counts) / 50 < 0.55  # about 1/e = 0.37 are left out
    assert counts != bootstrap_counts(50, 3)


def test_bootstrap_in_a_shared_order_weighs_the_pairs() -> None:
    pairs = make_pairs(6)
    batch = PairOrders(pairs, [1], shared=True, batch_pairs=6, bootstrap_seeds=[2, 3]).next()
    drawn = [sequence[1] for sequence in batch.rows[0][:6]]
    expected = [[float(bootstrap_counts(6, seed)[index]) for index in drawn] for seed in (2, 3)]
    assert batch.terms.weights.tolist() == expected


def test_ties_and_margins_reach_the_loss() -> None:
    pairs = [
        EncodedPair([1], [2], "toy", 1, 1, margin=2.0),
        EncodedPair([3], [4], "toy", 1, 1, margin=1.0, tie=True),
    ]
    batch = PairOrders(pairs, [1], shared=True, batch_pairs=2, margins=True).next()
    by_pair = {row[0]: column for column, row in enumerate(batch.rows[0][:2])}
    assert batch.terms.targets[0, [by_pair[1], by_pair[3]]].tolist() == [1.0, 0.5]
    assert batch.terms.margins[0, [by_pair[1], by_pair[3]]].tolist() == [2.0, 0.0]
    off = PairOrders(pairs, [1], shared=True, batch_pairs=2).next()
    assert not off.terms.margins.any()


def test_parts_of_a_batch_are_the_batch() -> None:
    batch = PairOrders(make_pairs(5), [1, 2], shared=False, batch_pairs=5).next()
    parts = [batch.part(slice(0, 2)), batch.part(slice(2, 5))]
    for row in range(2):
        assert parts[0].rows[row][:2] + parts[1].rows[row][:3] == batch.rows[row][:5]
        assert parts[0].rows[row][2:] + parts[1].rows[row][3:] == batch.rows[row][5:]
    assert torch.equal(torch.cat([part.terms.targets for part in parts], dim=1), batch.terms.targets)
