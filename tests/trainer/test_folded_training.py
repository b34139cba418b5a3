"""Folded training against K separate PEFT trainings with the same seeds, orders and clips."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quorum_model.backbone import wrap_backbone
from quorum_model.model import EnsembleModel
from quorum_trainer.config import LossOptions, Optimisation
from quorum_trainer.data import EncodedPair
from quorum_trainer.training.batches import PairOrders, endless_order
from quorum_trainer.training.loop import train_phase
from quorum_trainer.training.step import StepSettings, train_step, trainables_of
from tests.reference.peft_oracle import peft_model
from tests.reference.tiny_models import ARCHITECTURES, make_model, random_member, random_sequences

SEEDS = [11, 12, 13]
NUM_PAIRS = 24


def options(steps: int) -> Optimisation:
    return Optimisation(epochs=steps * 4 / NUM_PAIRS, batch_pairs=4, lr=1e-3, clip=0.5, schedule="constant", warmup=0)


GAMMA = 0.01
SETTINGS = StepSettings(clip=1e9, loss=LossOptions(centring=GAMMA))


def train(model: EnsembleModel, pairs: list[EncodedPair], seeds: list[int], steps: int) -> list[list[float]]:
    orders = PairOrders(pairs, seeds, shared=False, batch_pairs=4)
    settings = StepSettings(clip=options(steps).clip, loss=LossOptions(centring=GAMMA))
    return train_phase(model, trainables_of(model, backbone=False), orders, options(steps), settings, total=steps)


def make_pairs() -> list[EncodedPair]:
    lengths = [3 + (7 * index) % 20 for index in range(2 * NUM_PAIRS)]
    sequences = random_sequences(lengths, seed=5)
    return [
        EncodedPair(chosen, rejected, "toy", len(chosen), len(rejected))
        for chosen, rejected in zip(sequences[:NUM_PAIRS], sequences[NUM_PAIRS:], strict=True)
    ]


def one_score(model: Any, ids: list[int]) -> torch.Tensor:
    score: torch.Tensor = model(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)
    ).logits[0, 0]
    return score


def peft_losses(model: Any, pairs: list[EncodedPair], seed: int, steps: int) -> list[float]:
    """Plain PEFT: one model, one unpadded sequence at a time, PyTorch's own clip and AdamW, loss written out."""
    trained = [p for n, p in model.named_parameters() if "lora_" in n or "modules_to_save" in n]
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=options(steps).lr, weight_decay=0.0)
    order = endless_order([1.0] * len(pairs), seed)
    losses = []
    for _ in range(steps):
        batch = [pairs[next(order)] for _ in range(4)]
        preference, centring = [], []
        for pair in batch:
            chosen, rejected = (one_score(model, ids) for ids in (pair.chosen, pair.rejected))
            preference.append(-torch.nn.functional.logsigmoid(chosen - rejected))
            centring.append((chosen + rejected) ** 2)
        optimizer.zero_grad()
        (torch.stack(preference).mean() + GAMMA * torch.stack(centring).mean()).backward()
        torch.nn.utils.clip_grad_norm_(trained, options(steps).clip)
        optimizer.step()
        losses.append(float(torch.stack(preference).mean().detach()))
    return losses


@pytest.mark.parametrize(("name", "steps"), [("bert", 50), ("llama", 50), ("deberta-v3", 8)])
def test_folded_training_equals_separate_peft_trainings(name: str, steps: int, tmp_path: Path) -> None:
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    base = make_model(architecture)
    backbone = wrap_backbone(copy.deepcopy(base))
    members = [random_member(backbone, rank=4, seed=seed, scaling=1.5) for seed in SEEDS]
    pairs = make_pairs()
    expected = [
        peft_losses(
            peft_model(base, member, backbone.head.module_names, tmp_path / f"m{index}"), pairs, SEEDS[index], steps
        )
        for index, member in enumerate(members)
    ]
    model = EnsembleModel(backbone, [m.lora for m in members], [m.head for m in members], architecture.pooling)
    actual = train(model, pairs, SEEDS, steps)
    # fp32 over 50 steps of AdamW: rounding differences grow, yet stay far below the losses' own movement.
    np.testing.assert_allclose(np.array(actual), np.array(expected).T, rtol=0, atol=1e-4)
    assert np.ptp(np.array(expected), axis=1).min() > 0.1
    assert np.abs(np.array(expected)[0] - np.array(expected)[1]).max() > 0.1


def test_members_together_equal_each_alone() -> None:
    architecture = ARCHITECTURES[0]
    pairs = make_pairs()

    def run(which: list[int]) -> np.ndarray:
        backbone = wrap_backbone(make_model(architecture, torch.float64))
        members = [random_member(backbone, rank=4, seed=SEEDS[index]) for index in which]
        model = EnsembleModel(backbone, [m.lora for m in members], [m.head for m in members], "first")
        seeds = [SEEDS[index] for index in which]
        return np.array(train(model, pairs, seeds, 50))

    together = run([0, 1, 2])
    for index in range(3):
        # fp64, where 50 steps of AdamW do not amplify rounding to anything that could hide a coupling.
        np.testing.assert_allclose(run([index])[:, 0], together[:, index], rtol=0, atol=1e-8)


def test_shared_parameters_get_the_mean_of_the_members_gradients() -> None:
    """Phase 1 in full: the backbone's gradient is the mean over members, a head's is its own."""
    backbone = wrap_backbone(make_model(ARCHITECTURES[0]))
    heads = [random_member(backbone, rank=2, seed=seed).head for seed in SEEDS]
    pairs = make_pairs()[:4]
    batch = PairOrders(pairs, [1], shared=True, batch_pairs=4).next()

    def gradients(which: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        copied = wrap_backbone(make_model(ARCHITECTURES[0]))
        model = EnsembleModel(copied, None, [heads[index] for index in which], "first")
        trainables = trainables_of(model, backbone=True)
        optimizer = torch.optim.SGD([*trainables.shared, *trainables.heads], lr=0.0)
        train_step(model, trainables, batch, optimizer, SETTINGS)
        weight = copied.body.encoder.layer[0].attention.self.query.weight
        head = model.heads.parameters_by_name["classifier/weight"]
        assert weight.grad is not None
        assert head.grad is not None
        return weight.grad, head.grad

    all_weight, all_head = gradients([0, 1, 2])
    each = [gradients([index]) for index in range(3)]
    torch.testing.assert_close(all_weight, torch.stack([weight for weight, _ in each]).mean(0), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(all_head, torch.cat([head for _, head in each]), rtol=1e-4, atol=1e-7)
