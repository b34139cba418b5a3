"""Training on CUDA: K members together end where PEFT ends with each alone; `quorum train` writes what it trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from quorum_model.loading import load_member_scorer
from quorum_trainer.benchmark.contestants import Task, folded, peft_one_by_one
from quorum_trainer.benchmark.workload import draw_pairs
from quorum_trainer.command import run
from quorum_trainer.config import TrainConfig
from tests.trainer.conftest import make_config, save_backbone

__all__ = ["make_config"]  # a fixture of the trainer's tests

# Of losses near 0.7 after three steps of AdamW at 3e-4. fp32: other kernels. bf16: activations of 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shared_order", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_members_trained_together_are_those_trained_alone(
    name: str, shared_order: bool, dtype: torch.dtype, tmp_path: Path, device: torch.device
) -> None:
    pairs = draw_pairs(12, vocab_size=90, longest=30)
    folder = save_backbone(name, tmp_path / "backbone")
    task = Task(folder, pairs, 3, 4, "all", 3, 4, shared_order, device, dtype)
    together = np.array(folded(task)())
    for packed in (False, True):
        alone = np.array(peft_one_by_one(task, packed=packed)())
        np.testing.assert_allclose(together, alone, atol=TOLERANCE[dtype])
    assert np.ptp(together) > 1e-3  # members apart
    on_cpu = np.array(folded(dataclasses.replace(task, device=torch.device("cpu")))())
    np.testing.assert_allclose(together, on_cpu, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_bundle_trained_on_cuda_scores_alike_on_a_cpu(
    name: str, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    finished = run(make_config(name, dtype="bfloat16"), tmp_path / "bundle")
    assert finished is not None
    bundle, _ = finished
    ids = [[4, 9, 11, 8], [7, 7, 9, 30, 12, 5, 8]]
    expected = load_member_scorer(bundle, device="cpu", dtype="float32").score(ids).raw
    actual = load_member_scorer(bundle, device="cuda", dtype="float32").score(ids).raw
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
