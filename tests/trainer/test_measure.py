"""Held-out figures, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from quorum_trainer.data import EncodedPair
from quorum_trainer.measure import accuracies, measure


def pair(source: str, chosen_chars: int, rejected_chars: int) -> EncodedPair:
    return EncodedPair([1], [2], source, chosen_chars, rejected_chars)


PAIRS = [pair("a", 5, 3), pair("a", 3, 5), pair("b", 4, 4), pair("b", 9, 1)]


def test_accuracies_by_hand() -> None:
    margins = np.array([[1.0, -1.0, 2.0, 0.0], [3.0, 2.0, -1.0, -1.0]])
    table = accuracies(margins, PAIRS)
    assert table["all"]["members"] == [0.625, 0.5]  # a tie counts one half
    assert table["all"]["ensemble_mean"] == 0.75  # means 2, 0.5, 0.5, -0.5
    assert table["all"]["members_average"] == pytest.approx(0.5625)
    assert table["all"]["longer_wins"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert table["all"]["shorter_wins"] == pytest.approx((0 + 1 + 0.5 + 0) / 4)
    assert (table["a"]["num_pairs"], table["a"]["ensemble_mean"], table["b"]["ensemble_mean"]) == (2, 1.0, 0.5)


def test_members_of_other_scales_count_alike() -> None:
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(0.5, 1, (2, 400)), rng.normal(0, 1, (2, 400))
    wide = np.array([[1.0], [100.0]])
    pairs = [pair("a", 1, 2)] * 400
    plain, scaled = measure(chosen, rejected, pairs), measure(chosen * wide + 7, rejected * wide + 7, pairs)
    assert scaled.metrics == plain.metrics
    assert scaled.pair_temperature == pytest.approx(plain.pair_temperature)
    assert scaled.calibration[1].scale == pytest.approx(100 * plain.calibration[1].scale)
