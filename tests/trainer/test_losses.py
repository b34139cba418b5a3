"""Losses of one member, by hand and by loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from quorum_trainer.training.losses import PairTerms, anchor, centring, nuclear_norm_ratio, preference


def terms(num_pairs: int, **changes: list[list[float]]) -> PairTerms:
    values = {"targets": [[1.0] * num_pairs], "margins": [[0.0] * num_pairs], "weights": [[1.0] * num_pairs]}
    return PairTerms(**{key: torch.tensor(value, dtype=torch.float64) for key, value in (values | changes).items()})


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_preference_by_hand() -> None:
    chosen = torch.tensor([[1.0, 0.5], [2.0, -1.0]], dtype=torch.float64)
    rejected = torch.tensor([[0.0, 1.0], [0.5, 1.0]], dtype=torch.float64)
    expected = [
        -math.log(sigmoid(1.0)) - math.log(sigmoid(-0.5)),
        -math.log(sigmoid(1.5)) - math.log(sigmoid(-2.0)),
    ]
    assert preference(chosen, rejected, terms(2)).tolist() == pytest.approx(expected, abs=1e-12)


def test_every_term_against_a_loop() -> None:
    draw = np.random.default_rng(0)
    chosen, rejected = draw.normal(size=(3, 7)), draw.normal(size=(3, 7))
    targets = draw.choice([1.0, 0.5], size=(3, 7))
    margins = np.where(targets == 1, draw.uniform(0, 2, size=(3, 7)), 0.0)
    weights = draw.integers(0, 3, size=(3, 7)).astype(float)
    smoothing = 0.1
    expected = []
    for member in range(3):
        total = 0.0
        for pair in range(7):
            d = chosen[member, pair] - rejected[member, pair] - margins[member, pair]
            right = targets[member, pair]
            # The label is wrong with probability `smoothing`: the mean over both cases.
            right = (1 - smoothing) * right + smoothing * (1 - right)
            total += weights[member, pair] * (-right * math.log(sigmoid(d)) - (1 - right) * math.log(sigmoid(-d)))
        expected.append(total)
    actual = preference(
        torch.from_numpy(chosen),
        torch.from_numpy(rejected),
        PairTerms(*(torch.from_numpy(x) for x in (targets, margins, weights))),
        label_smoothing=smoothing,
    )
    assert actual.tolist() == pytest.approx(expected, abs=1e-12)


def test_a_tie_pulls_the_scores_together_and_a_margin_apart() -> None:
    def slope(difference: float, **changes: list[list[float]]) -> float:
        chosen = torch.tensor([[difference]], dtype=torch.float64, requires_grad=True)
        preference(chosen, torch.zeros(1, 1, dtype=torch.float64), terms(1, **changes)).backward()
        assert chosen.grad is not None
        return float(chosen.grad)

    assert slope(0.0, targets=[[0.5]]) == 0.0
    assert slope(1.0, targets=[[0.5]]) > 0 > slope(-1.0, targets=[[0.5]])
    # At a difference of the margin the gradient is that of an even pair without one.
    assert slope(2.0, margins=[[2.0]]) == pytest.approx(slope(0.0))


def test_centring_by_hand() -> None:
    chosen, rejected = torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0, 1.0]])
    assert centring(chosen, rejected, terms(2)).tolist() == [9.0]
    assert centring(chosen, rejected, terms(2, weights=[[5.0, 2.0]])).tolist() == [18.0]


def test_anchor_is_each_members_own_distance() -> None:
    first = [torch.zeros(2, 3), torch.ones(2, 2, 2)]
    now = [torch.tensor([[1.0, 0, 0], [0, 2.0, 0]]), torch.ones(2, 2, 2)]
    now[1] = now[1] + torch.tensor([0.0, 0.5]).view(2, 1, 1)
    assert anchor(now, first).tolist() == pytest.approx([1.0, 4.0 + 4 * 0.25])


def test_nuclear_norm_ratio_against_singular_values() -> None:
    draw = torch.Generator().manual_seed(1)
    factors = [torch.randn(3, 10, 2, generator=draw, dtype=torch.float64) for _ in range(2)]
    expected = []
    for a in factors:
        stacked = np.concatenate([a[member].numpy().T for member in range(3)])  # (K r, d), as PEFT stores lora_A
        values = np.linalg.svd(stacked, compute_uv=False)
        expected.append(values.sum() / math.sqrt((values**2).sum()))
    assert float(nuclear_norm_ratio(factors)) == pytest.approx(np.mean(expected), abs=1e-10)


def test_nuclear_norm_ratio_is_one_for_parallel_and_most_for_orthogonal_members() -> None:
    row = torch.tensor([1.0, 2.0, 0.0, 0.0])
    parallel = torch.stack([row, 3 * row]).view(2, 4, 1)
    orthogonal = torch.stack([row, torch.tensor([0.0, 0.0, 2.0, 1.0])]).view(2, 4, 1)
    assert float(nuclear_norm_ratio([parallel])) == pytest.approx(1.0, abs=1e-6)
    assert float(nuclear_norm_ratio([orthogonal])) == pytest.approx(math.sqrt(2), abs=1e-6)
