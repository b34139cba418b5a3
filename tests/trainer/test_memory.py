"""The estimate against what autograd and AdamW then really hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from quorum_model.backbone import load_backbone
from quorum_model.model import EnsembleModel
from quorum_trainer.config import TrainConfig
from quorum_trainer.prepare import find_base, load_data
from quorum_trainer.training.batches import PairOrders, longest_batch
from quorum_trainer.training.draws import draw_adapter, draw_head
from quorum_trainer.training.loop import make_optimizer
from quorum_trainer.training.memory import MemoryEstimate, StageMemory, estimate_memory
from quorum_trainer.training.phases import add_dropout
from quorum_trainer.training.step import StepSettings, train_step, trainables_of

PHASE: dict[str, Any] = {"epochs": 1, "batch_pairs": 8, "lr": 1e-3, "lora": {"rank": 4}}


@pytest.mark.parametrize("order", ["own", "shared"])
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_the_estimate_is_what_a_step_holds(rate: float, order: str, make_config: Callable[..., TrainConfig]) -> None:
    together = {"order": order, "members_at_once": 3}
    config = make_config(phase2={**PHASE, **together, "lora": {"rank": 4, "dropout": rate}})
    base = find_base(config)
    pairs = load_data(config, base.encoder).train
    estimate, export = estimate_memory(config, base.start, pairs, torch.device("cpu")).stages
    assert export.total == estimate.weights  # float32 here already

    backbone = load_backbone(base.start.folder)
    assert config.phase2 is not None
    draw = torch.Generator().manual_seed(0)
    adapters = [draw_adapter(backbone, config.phase2.lora, draw) for _ in range(3)]
    heads = [draw_head(backbone, draw, redraw_projection=False) for _ in range(3)]
    model = EnsembleModel(backbone, adapters, heads, "first")
    dropout = add_dropout(model, [rate] * 3, [1, 2, 3])
    trainables = trainables_of(model, backbone=False)
    optimizer = make_optimizer(trainables, config.phase2)
    seeds = [1] if order == "shared" else [1, 2, 3]
    orders = PairOrders(pairs, seeds, shared=order == "shared", batch_pairs=8)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = orders.next()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        model(batch.rows)
    tokens = max(sum(map(len, row)) for row in batch.rows)
    activations = sum(kept.values()) / tokens * longest_batch(pairs, 8)
    # The probe's one sequence has another attention pattern than the batch's many; what is kept grows with tokens.
    assert estimate.activations == pytest.approx(activations, rel=0.25)

    train_step(model, trainables, batch, optimizer, StepSettings(dropout=dropout))
    held = sum(
        p.nbytes + (p.grad.nbytes if p.grad is not None else 0)
        + sum(v.nbytes for k, v in optimizer.state[p].items() if k != "step")
        for p in trainables.all()
    )  # fmt: skip
    assert estimate.trained == held
    assert estimate.weights == sum(p.nbytes for p in load_backbone(base.start.folder).model.parameters())


def test_dividing_a_batch_divides_its_activations(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(phase2=PHASE)
    base = find_base(config)
    pairs = load_data(config, base.encoder).train

    def activations(**changes: Any) -> int:
        changed = make_config(phase2={**PHASE, **changes})
        return estimate_memory(changed, base.start, pairs, torch.device("cpu")).stages[0].activations

    whole = activations(members_at_once=3)
    assert activations() == activations(members_at_once=1)  # what a CPU does with orders of their own
    assert activations(members_at_once=1) == pytest.approx(whole / 3, rel=0.01)
    assert activations(micro_batch_pairs=2) < whole / 3


def test_recomputing_activations_keeps_less(make_config: Callable[..., TrainConfig]) -> None:
    config = make_config(phase2=PHASE)
    base = find_base(config)
    pairs = load_data(config, base.encoder).train
    plain, recomputed = (
        estimate_memory(
            config.model_copy(update={"gradient_checkpointing": on}), base.start, pairs, torch.device("cpu")
        ).stages[0]
        for on in (False, True)
    )
    assert recomputed.activations < plain.activations / 3


def test_copies_count(make_config: Callable[..., TrainConfig]) -> None:
    def trained(**changes: Any) -> int:
        config = make_config(**{"phase2": PHASE, **changes})
        base = find_base(config)
        pairs = load_data(config, base.encoder).train
        return estimate_memory(config, base.start, pairs, torch.device("cpu")).stages[0].trained

    plain = trained()  # parameters, gradients, two moments
    assert trained(diversity={"anchor": 1e-3, "lr_spread": 2}) == plain / 4 * 6
    assert trained(phase2={**PHASE, "evaluate_every": 1, "patience": 1}) == plain / 4 * 5


def test_too_much_is_said() -> None:
    stage = StageMemory("phase 2", weights=3_000_000_000, trained=1_000_000_000, activations=2_000_000_000)
    assert stage.total == 6_000_000_000
    assert "6.00 GB" in MemoryEstimate([stage], None).lines()[0]
    assert len(MemoryEstimate([stage], 7_000_000_000).lines()) == 1
    assert "gradient_checkpointing" in MemoryEstimate([stage], 5_000_000_000).lines()[1]
