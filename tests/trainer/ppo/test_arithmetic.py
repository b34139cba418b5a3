"""PPO's arithmetic against plain loops over Python floats, and what holds for any numbers."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor

from quorum_trainer.ppo.advantages import gae, grpo, rloo
from quorum_trainer.ppo.alarm import look_for_overoptimisation
from quorum_trainer.ppo.batches import cut, pad, stack
from quorum_trainer.ppo.config import AlarmOptions
from quorum_trainer.ppo.kl import AdaptiveKL, FixedKL, k1, k2, k3
from quorum_trainer.ppo.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    completion_weights,
    importance_weights,
    token_weights,
)
from quorum_trainer.ppo.samples import prompts_of_step
from quorum_trainer.ppo.shaping import completion_rewards, penalised, token_rewards
from quorum_trainer.ppo.tokens import masked_mean, masked_sum, token_entropy, token_logprobs, whiten

LENGTHS = (5, 1, 3)
WIDTH = 6
TIGHT = {"rtol": 1e-12, "atol": 1e-12}  # float64 against Python's floats


@pytest.fixture
def mask() -> Tensor:
    return torch.tensor([[t < length for t in range(WIDTH)] for length in LENGTHS])


def draw(seed: int) -> Tensor:
    return torch.randn(len(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_and_entropy(temperature: float) -> None:
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    ids = torch.tensor([[0, 6, 3], [2, 2, 1]])
    expected = log_softmax(logits.numpy() / temperature, axis=-1)
    np.testing.assert_allclose(
        token_logprobs(logits, ids, temperature),
        np.take_along_axis(expected, ids.numpy()[..., None], -1)[..., 0],
        **TIGHT,
    )
    np.testing.assert_allclose(token_entropy(logits, temperature), -(np.exp(expected) * expected).sum(-1), **TIGHT)
    assert token_logprobs(logits.to(torch.bfloat16), ids).dtype == torch.float32


def test_masked_sums_do_not_look_under_the_mask(mask: Tensor) -> None:
    values = draw(1)
    rows = [values[row, :length].tolist() for row, length in enumerate(LENGTHS)]
    dirty = values.masked_fill(~mask, math.nan)
    np.testing.assert_allclose(masked_sum(dirty, mask), [sum(row) for row in rows], **TIGHT)
    flat = [value for row in rows for value in row]
    assert masked_mean(dirty, mask).item() == pytest.approx(sum(flat) / len(flat), rel=1e-12)
    white = whiten(dirty, mask)
    mean = sum(flat) / len(flat)
    scale = math.sqrt(sum((value - mean) ** 2 for value in flat) / len(flat) + 1e-8)
    np.testing.assert_allclose(white[mask], [(value - mean) / scale for value in flat], **TIGHT)
    assert not white[~mask].any()
    assert not whiten(torch.full_like(values, 3.0), mask).any()


@pytest.mark.parametrize(("discount", "trace"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
def test_gae_is_the_sum_over_later_errors(mask: Tensor, discount: float, trace: float) -> None:
    """Schulman et al., eq. 16, written out: A_t = sum over l of (γλ)^l δ_{t+l}."""
    rewards, values = draw(2), draw(3)
    advantages, returns = gae(
        rewards.masked_fill(~mask, 7.0), values.masked_fill(~mask, -9.0), mask, discount=discount, trace=trace
    )
    for row, length in enumerate(LENGTHS):
        r, v = rewards[row].tolist(), [*values[row, :length].tolist(), 0.0]
        for t in range(length):
            expected = sum(
                (discount * trace) ** later * (r[t + later] + discount * v[t + later + 1] - v[t + later])
                for later in range(length - t)
            )
            assert advantages[row, t].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
            assert returns[row, t].item() == pytest.approx(expected + v[t], rel=1e-12, abs=1e-12)
    assert not advantages[~mask].any()
    if trace == 1.0 and discount == 1.0:  # then a return is what is still to come
        for row, length in enumerate(LENGTHS):
            assert returns[row, 0].item() == pytest.approx(rewards[row, :length].sum().item())


def test_rloo_and_grpo_by_prompt() -> None:
    rewards, groups = [1.0, 4.0, 2.0, 5.0, 3.0, 8.0], [0, 1, 0, 1, 2, 0]
    loo, standardised = [], []
    for reward, group in zip(rewards, groups, strict=True):
        own = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        if len(own) == 1:
            loo.append(0.0)
            standardised.append(0.0)
            continue
        loo.append(reward - (sum(own) - reward) / (len(own) - 1))
        standardised.append((reward - np.mean(own)) / (np.std(own, ddof=1) + 1e-6))
    tensors = torch.tensor(rewards, dtype=torch.float64), torch.tensor(groups)
    np.testing.assert_allclose(rloo(*tensors), loo, **TIGHT)
    np.testing.assert_allclose(grpo(*tensors), standardised, **TIGHT)
    equal = torch.full((4,), 2.5), torch.tensor([0, 0, 1, 1])
    assert not rloo(*equal).any()
    assert not grpo(*equal).any()


def test_estimators_of_the_kl_and_their_mean_under_the_policy() -> None:
    policy, reference = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    exact = float((policy * np.log(policy / reference)).sum())
    logs = torch.tensor(np.log(policy)), torch.tensor(np.log(reference))
    for estimator in (k1, k3):  # unbiased
        assert float((policy * estimator(*logs).numpy()).sum()) == pytest.approx(exact, rel=1e-12)
    assert (k3(*logs) >= 0).all()
    ratio = reference / policy
    np.testing.assert_allclose(k1(*logs), -np.log(ratio), **TIGHT)
    np.testing.assert_allclose(k2(*logs), np.log(ratio) ** 2 / 2, **TIGHT)
    np.testing.assert_allclose(k3(*logs), ratio - 1 - np.log(ratio), **TIGHT)


def test_controllers() -> None:
    assert FixedKL(0.1).after(100.0) == FixedKL(0.1)
    adaptive = AdaptiveKL(0.1, target=6.0, gain=0.1)
    assert adaptive.after(6.0).coefficient == 0.1
    assert adaptive.after(6.6).coefficient == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert adaptive.after(60.0).coefficient == pytest.approx(0.1 * 1.02)  # the error is clipped at 0.2
    assert adaptive.after(0.0).coefficient == pytest.approx(0.1 * 0.98)


def test_rewards_are_shaped_token_by_token(mask: Tensor) -> None:
    logprobs, reference = draw(4), draw(5)
    scores = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    lengths, ended = torch.tensor(LENGTHS), torch.tensor([True, False, True])
    paid = penalised(scores, lengths, ended, missing_eos=0.5, per_token=0.1, free_tokens=2)
    np.testing.assert_allclose(paid, [1.0 - 0.3, 2.0 - 0.5, 3.0 - 0.1], **TIGHT)
    rewards = token_rewards(paid, logprobs, reference, mask, coefficient=0.2)
    for row, length in enumerate(LENGTHS):
        for t in range(WIDTH):
            expected = 0.0
            if t < length:
                expected = -0.2 * (logprobs[row, t].item() - reference[row, t].item())
            if t == length - 1:
                expected += paid[row].item()
            assert rewards[row, t].item() == pytest.approx(expected, abs=1e-12)
    whole = completion_rewards(paid, logprobs, reference, mask, coefficient=0.2)
    np.testing.assert_allclose(whole, rewards.sum(-1), **TIGHT)


def test_the_clipped_policy_loss(mask: Tensor) -> None:
    old = draw(6)
    logprobs = (old + 0.3 * draw(7)).requires_grad_()
    advantages = draw(8)
    weights = mask.double() / mask.sum()
    found = clipped_policy_loss(logprobs, old, advantages, weights, clip=0.05)
    total, cut_off, gradient = 0.0, 0, {}
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            ratio = math.exp(logprobs[row, t].item() - old[row, t].item())
            advantage = advantages[row, t].item()
            plain, bounded = ratio * advantage, min(max(ratio, 0.95), 1.05) * advantage
            total -= min(plain, bounded)
            cut_off += bounded < plain
            gradient[row, t] = 0.0 if bounded < plain else -plain
    count = sum(LENGTHS)
    assert found.loss.item() == pytest.approx(total / count, rel=1e-12)
    assert found.clipped.item() == pytest.approx(cut_off / count, rel=1e-6)
    assert cut_off > 0
    found.loss.backward()  # type: ignore[no-untyped-call]
    assert logprobs.grad is not None
    for (row, t), expected in gradient.items():
        assert logprobs.grad[row, t].item() == pytest.approx(expected / count, rel=1e-9, abs=1e-12)
    assert not logprobs.grad[~mask].any()


def test_the_clipped_value_loss(mask: Tensor) -> None:
    values, old, returns = draw(9), draw(10), draw(11)
    found = clipped_value_loss(values, old, returns, mask.double() / mask.sum(), clip=0.3)
    total = 0.0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            v, o, r = (tensor[row, t].item() for tensor in (values, old, returns))
            total += 0.5 * max((v - r) ** 2, (min(max(v, o - 0.3), o + 0.3) - r) ** 2)
    assert found.item() == pytest.approx(total / sum(LENGTHS), rel=1e-12)


def test_weights_sum_to_one(mask: Tensor) -> None:
    by_completion = completion_weights(mask)
    np.testing.assert_allclose(by_completion.sum(-1), [1 / 3] * 3, rtol=1e-6)
    np.testing.assert_allclose(by_completion[0, :5], [1 / 15] * 5, rtol=1e-6)
    np.testing.assert_allclose(token_weights(mask)[mask], [1 / 9] * 9, rtol=1e-6)


def test_importance_weights_are_truncated(mask: Tensor) -> None:
    old, behaviour = draw(12), draw(13)
    found = importance_weights(old, behaviour.masked_fill(~mask, math.inf), mask, cap=1.5)
    for row, length in enumerate(LENGTHS):
        for t in range(WIDTH):
            ratio = math.exp(old[row, t].item() - behaviour[row, t].item()) if t < length else 1.0
            assert found[row, t].item() == pytest.approx(min(ratio, 1.5), rel=1e-12)


def test_padding_puts_prompts_left_and_completions_right() -> None:
    batch = pad([((1, 2), (3,)), ((4,), (5, 6, 7))], 0, torch.device("cpu"))
    assert batch.ids.tolist() == [[1, 2, 3, 0, 0], [0, 4, 5, 6, 7]]
    assert batch.attention.tolist() == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]
    assert batch.mask.tolist() == [[True, False, False], [True, True, True]]
    assert batch.positions.tolist() == [[0, 1, 2, 2, 2], [0, 0, 1, 2, 3]]
    assert batch.completion_ids.tolist() == [[3, 0, 0], [5, 6, 7]]
    np.testing.assert_array_equal(stack([torch.tensor([1.0]), torch.tensor([2.0, 3.0])], 3), [[1, 0, 0], [2, 3, 0]])


def test_parts_hold_every_index_once_and_keep_to_the_limit() -> None:
    generator = random.Random(0)
    pairs = [([0] * generator.randint(1, 40), [0] * generator.randint(1, 40)) for _ in range(50)]
    chosen = generator.sample(range(50), 30)
    parts = list(cut(pairs, chosen, 160))
    assert sorted(index for part in parts for index in part) == sorted(chosen)
    for part in parts:
        width = max(len(pairs[i][0]) for i in part) + max(len(pairs[i][1]) for i in part)
        assert len(part) == 1 or len(part) * width <= 160
    assert len(parts) < 30
    assert list(cut(pairs, [0], 1)) == [[0]]


def test_prompts_come_once_an_epoch_in_an_order_of_their_own() -> None:
    taken = [index for step in range(5) for index in prompts_of_step(10, step, 4, seed=3)]
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:]
    assert taken == [index for step in range(5) for index in prompts_of_step(10, step, 4, seed=3)]
    assert taken != [index for step in range(5) for index in prompts_of_step(10, step, 4, seed=4)]
    assert len(prompts_of_step(3, 0, 8, seed=0)) == 8


def test_the_alarm_wants_both_to_climb() -> None:
    options = AlarmOptions(window=10)
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.01, (2, 30))
    steps = np.arange(30)
    up, flat = list(0.02 * steps + noise[0]), list(0.5 + noise[1])
    spread = list(0.5 + 0.01 * steps + noise[1])
    sign = look_for_overoptimisation(up, spread, options)
    assert sign is not None
    assert sign.std_rise == pytest.approx(0.01 * 9 / (0.5 + 0.01 * 20), abs=0.03)
    assert look_for_overoptimisation(flat, spread, options) is None
    assert look_for_overoptimisation(up, flat, options) is None
    assert look_for_overoptimisation(list(reversed(up)), spread, options) is None
    assert look_for_overoptimisation(up[:9], spread[:9], options) is None
    assert look_for_overoptimisation(up, [None] * 30, options) is None
    assert look_for_overoptimisation([1.0] * 30, [1.0] * 30, options) is None
    assert look_for_overoptimisation(up, [0.5 + 0.0001 * step for step in steps], options) is None  # certain, and small
