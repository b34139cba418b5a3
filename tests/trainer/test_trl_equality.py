"""A `single` trains as TRL's RewardTrainer does: the same loss, step by step, from the same weights and order."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import SequentialSampler

from quorum_model.backbone import wrap_backbone
from quorum_model.model import EnsembleModel
from quorum_trainer.config import LossOptions, Optimisation
from quorum_trainer.data import EncodedPair
from quorum_trainer.training.batches import PairOrders, endless_order
from quorum_trainer.training.loop import train_phase
from quorum_trainer.training.step import StepSettings, trainables_of
from tests.reference.tiny_models import ARCHITECTURES, make_model, random_sequences
from tests.reference.tiny_tokenizers import bert_like, llama_like

STEPS, BATCH, SEED = 20, 4, 3
OPTIONS = Optimisation(epochs=1, batch_pairs=BATCH, lr=1e-3, schedule="linear", warmup=0, weight_decay=0.01, clip=0.5)


def make_pairs() -> list[EncodedPair]:
    num_pairs = STEPS * BATCH
    sequences = random_sequences([3 + (7 * index) % 20 for index in range(2 * num_pairs)], seed=5)
    halves = zip(sequences[:num_pairs], sequences[num_pairs:], strict=True)
    return [
        EncodedPair(chosen, rejected, "toy", 1, 1, margin=0.25 * (index % 3))
        for index, (chosen, rejected) in enumerate(halves)
    ]


def trl_losses(model: Any, tokenizer: Any, pairs: list[EncodedPair], folder: Path) -> list[float]:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    losses: list[float] = []

    class InOrder(RewardTrainer):  # type: ignore[misc]
        """Pairs in the order given, losses unrounded."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(float(loss.detach()))
            return loss

    rows = [{"chosen_ids": p.chosen, "rejected_ids": p.rejected, "margin": p.margin} for p in pairs]
    config = RewardConfig(
        output_dir=str(folder), num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=OPTIONS.lr,
        lr_scheduler_type="linear", warmup_steps=0, weight_decay=OPTIONS.weight_decay, max_grad_norm=OPTIONS.clip,
        center_rewards_coefficient=0.01, bf16=False, use_cpu=True, gradient_checkpointing=False, report_to=[],
        save_strategy="no", disable_tqdm=True, max_length=None, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = InOrder(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    return losses


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.filterwarnings("ignore")
def test_a_single_has_trls_losses(name: str, tmp_path: Path) -> None:
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    model = make_model(architecture)
    tokenizer = llama_like() if name == "llama" else bert_like()
    model.config.pad_token_id = tokenizer.pad_token_id
    pairs = [
        pair
        for pair in make_pairs()
        if tokenizer.pad_token_id not in (*pair.chosen[-1:], *pair.rejected[-1:])  # TRL's padding would hide it
    ]
    backbone = wrap_backbone(copy.deepcopy(model))
    head = {backbone.head.public_name(key): value for key, value in backbone.head.named_parameters()}
    order = endless_order([1.0] * len(pairs), SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = trl_losses(model, tokenizer, [pairs[next(order)] for _ in pairs], tmp_path)

    ensemble = EnsembleModel(backbone, None, [head], architecture.pooling)
    trainables = trainables_of(ensemble, backbone=True)
    orders = PairOrders(pairs, [SEED], shared=True, batch_pairs=BATCH, margins=True)
    settings = StepSettings(clip=OPTIONS.clip, loss=LossOptions(centring=0.01, margins=True))
    steps = len(expected)
    actual: list[float] = []
    # TRL's loss has the centring term in it: added here from the scores before each step.
    for_step = ensemble.forward

    def record(rows: Any, members: slice = slice(None)) -> Any:
        scores = for_step(rows, members)
        half = scores.shape[1] // 2
        actual.append(0.01 * float(((scores[:, :half] + scores[:, half:]) ** 2).mean().detach()))
        return scores

    ensemble.forward = record  # type: ignore[method-assign]
    preference = train_phase(ensemble, trainables, orders, OPTIONS, settings, total=steps)
    ours = np.array(actual) + np.array(preference)[:, 0]
    # fp32; TRL pads and masks, which only reorders sums. Twenty steps of AdamW amplify rounding a little.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
    assert steps >= 18
    assert np.ptp(expected) > 0.05
