"""One step, divided in every way that must not change it; and the terms that make members differ."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import OPTConfig, OPTForSequenceClassification
from transformers.modeling_layers import GradientCheckpointingLayer

from quorum_model.backbone import wrap_backbone
from quorum_model.model import EnsembleModel
from quorum_trainer.config import LossOptions, Optimisation
from quorum_trainer.data import EncodedPair
from quorum_trainer.training.batches import PairOrders
from quorum_trainer.training.loop import make_optimizer, train_phase
from quorum_trainer.training.members import MemberDropout, scale_steps, spread_factors, spread_offsets
from quorum_trainer.training.precision import recompute_activations
from quorum_trainer.training.step import StepSettings, anchored, train_step, trainables_of
from tests.reference.tiny_models import ARCHITECTURES, make_model, random_member, random_sequences

SEEDS = [11, 12, 13]
OPTIONS = Optimisation(batch_pairs=6, lr=1e-3, head_lr=2e-3, clip=0.5, schedule="constant", warmup=0, weight_decay=0.1)


def make_pairs(num_pairs: int = 12) -> list[EncodedPair]:
    sequences = random_sequences([3 + (7 * index) % 20 for index in range(2 * num_pairs)], seed=5)
    halves = zip(sequences[:num_pairs], sequences[num_pairs:], strict=True)
    return [EncodedPair(chosen, rejected, "toy", 1, 1) for chosen, rejected in halves]


def make_ensemble(name: str = "bert", dtype: torch.dtype = torch.float64) -> EnsembleModel:
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    backbone = wrap_backbone(make_model(architecture, dtype))
    members = [random_member(backbone, rank=4, seed=seed) for seed in SEEDS]
    return EnsembleModel(backbone, [m.lora for m in members], [m.head for m in members], architecture.pooling)


def after(
    model: EnsembleModel, steps: int = 3, *, shared: bool = False, ties: bool = False, **settings: Any
) -> list[torch.Tensor]:
    """Everything trained, after some steps."""
    trainables = trainables_of(model, backbone=False)
    pairs = [replace(pair, tie=ties) for pair in make_pairs()]
    orders = PairOrders(pairs, SEEDS[:1] if shared else SEEDS, shared=shared, batch_pairs=6)
    if "anchor" in settings:
        settings["first"] = [p.detach().clone() for p in anchored(trainables, 3)]
    train_phase(model, trainables, orders, OPTIONS, StepSettings(clip=OPTIONS.clip, **settings), total=steps)
    return [parameter.detach().clone() for parameter in trainables.all()]


def largest_difference(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama", "deberta-v3"])
@pytest.mark.parametrize(
    "divided", [{"micro_batch_pairs": 4}, {"members_at_once": 2}, {"micro_batch_pairs": 1, "members_at_once": 1}]
)
def test_how_a_batch_is_divided_does_not_matter(name: str, divided: dict[str, int], shared: bool) -> None:
    whole = after(make_ensemble(name), 2, shared=shared)
    parts = after(make_ensemble(name), 2, shared=shared, **divided)
    # fp64; AdamW turns rounding of tiny gradients into steps of up to lr where a gradient is zero but for rounding.
    assert largest_difference(whole, parts) < 1e-7


@pytest.mark.parametrize("divided", [{}, {"members_at_once": 2}, {"members_at_once": 1, "micro_batch_pairs": 2}])
@pytest.mark.parametrize("shared", [False, True])
def test_gradient_checkpointing_changes_nothing(divided: dict[str, int], shared: bool) -> None:
    def run(recompute: bool) -> list[torch.Tensor]:
        model = make_ensemble()
        dropout = MemberDropout([0.2] * 3, SEEDS)
        for layer_name, layer in model.folded.items():
            layer.input_dropout = dropout.of_layer(layer_name)
        calls = []
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        layers[-1].register_forward_pre_hook(lambda *_: calls.append(1))  # the probes have run by now
        if recompute:
            recompute_activations(model.backbone)
        trained = after(model, 1, shared=shared, dropout=dropout, **divided)
        counts.append(len(calls))
        return trained

    counts: list[int] = []
    assert largest_difference(run(False), run(True)) < 1e-9
    assert counts[1] == 2 * counts[0]  # once more in the backward pass


def test_gradient_checkpointing_turns_no_dropout_on() -> None:
    """OPT's layers drop out by a rate of their own when they are in train mode."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, ffn_dim=32, num_attention_heads=2, word_embed_proj_dim=16,
        max_position_embeddings=40, dropout=0.5, attention_dropout=0.5, num_labels=1, pad_token_id=1,
    )  # fmt: skip
    plain, recomputed = (wrap_backbone(OPTForSequenceClassification(config).double()) for _ in range(2))
    recomputed.model.load_state_dict(plain.model.state_dict())
    recompute_activations(recomputed)
    ids = torch.tensor([[2, 7, 9, 11, 5]])
    left, right = (b.body(input_ids=ids).last_hidden_state for b in (plain, recomputed))
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


def test_a_spread_of_learning_rates_is_a_rate_a_member() -> None:
    factors = spread_factors(3, 2.0)
    assert factors == pytest.approx([0.5, 1.0, 2.0])
    assert spread_factors(1, 2.0) == [1.0]
    together = after(make_ensemble(), step_factors=torch.tensor(factors))
    for member, factor in enumerate(factors):
        alone = make_ensemble()
        trainables = trainables_of(alone, backbone=False)
        rates = {"lr": OPTIONS.lr * factor, "head_lr": (OPTIONS.head_lr or 0) * factor}
        options = OPTIONS.model_copy(update=rates)
        orders = PairOrders(make_pairs(), SEEDS, shared=False, batch_pairs=6)
        train_phase(alone, trainables, orders, options, StepSettings(clip=0.5), total=3)
        for expected, actual in zip(trainables.all(), together, strict=True):
            torch.testing.assert_close(actual[member], expected[member].detach(), rtol=0, atol=1e-9)


def test_scale_steps_by_hand() -> None:
    parameter = torch.nn.Parameter(torch.tensor([[3.0], [4.0]]))
    scale_steps([parameter], [torch.tensor([[1.0], [1.0]])], torch.tensor([0.5, 2.0]))
    assert parameter.tolist() == [[2.0], [7.0]]
    assert spread_offsets(3, 0.1) == pytest.approx([-0.1, 0.0, 0.1])
    assert spread_offsets(1, 0.1) == [0.0]


def test_an_anchor_holds_every_member_near_its_own_beginning() -> None:
    def distance(weight: float) -> list[float]:
        model = make_ensemble()
        trainables = trainables_of(model, backbone=False)
        first = [p.detach().clone() for p in trainables.own()]
        orders = PairOrders(make_pairs(), SEEDS, shared=False, batch_pairs=6)
        settings = StepSettings(clip=1e9, anchor=weight, first=first)
        optimizer = torch.optim.SGD(trainables.own(), lr=1e-2)
        for step in range(5):
            train_step(model, trainables, orders.next(), optimizer, settings, step=step)
        pairs = [(now.detach(), then) for now, then in zip(trainables.own(), first, strict=True)]
        return [math.sqrt(sum(float((now[m] - then[m]).square().sum()) for now, then in pairs)) for m in range(3)]

    free, held = distance(0.0), distance(20.0)
    assert all(0 < near < far for near, far in zip(held, free, strict=True))


def test_nuclear_norm_makes_members_more_diverse() -> None:
    from quorum_trainer.training.losses import nuclear_norm_ratio

    def diversity(weight: float) -> float:
        model = make_ensemble()
        after(model, 10, nuclear_norm=weight)
        return float(nuclear_norm_ratio([layer.a.detach() for layer in model.folded.values()]))

    assert diversity(5.0) > diversity(0.0) + 1e-3


def test_label_smoothing_and_ties_reach_the_gradient() -> None:
    plain = after(make_ensemble(), 1, loss=LossOptions(centring=0))
    smoothed = after(make_ensemble(), 1, loss=LossOptions(label_smoothing=0.2, centring=0))
    tied = after(make_ensemble(), 1, loss=LossOptions(centring=0), ties=True)
    assert largest_difference(plain, smoothed) > 1e-6
    assert largest_difference(plain, tied) > 1e-6


def test_the_result_tells_losses_and_norms_before_the_step() -> None:
    model = make_ensemble()
    trainables = trainables_of(model, backbone=False)
    batch = PairOrders(make_pairs(), SEEDS, shared=False, batch_pairs=6).next()
    with torch.no_grad():
        scores = model(batch.rows)
    expected = torch.nn.functional.softplus(scores[:, 6:] - scores[:, :6]).mean(dim=1)
    result = train_step(
        model,
        trainables,
        batch,
        make_optimizer(trainables, OPTIONS),
        StepSettings(clip=0.5, loss=LossOptions(centring=0)),
    )
    np.testing.assert_allclose(result.losses, expected.numpy(), atol=1e-6)  # reported in fp32
    assert all(norm > 0 for norm in result.gradient_norms)
