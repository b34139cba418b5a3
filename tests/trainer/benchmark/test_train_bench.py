"""`quorum bench train`: contestants that train the same end at the same losses, and the ratios are of their times."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from quorum_client.cli import app
from quorum_trainer.benchmark.contestants import Task, folded, peft_one_by_one
from quorum_trainer.benchmark.workload import draw_pairs, num_tokens
from tests.trainer.conftest import save_backbone


def make_task(folder: Path, *, shared_order: bool, layers: Any = "all") -> Task:
    pairs = draw_pairs(12, vocab_size=90, longest=30)
    return Task(folder, pairs, members=3, rank=4, layers=layers, steps=3, batch_pairs=4, shared_order=shared_order)


@pytest.mark.parametrize(("shared_order", "layers"), [(False, "all"), (True, "top-half")])
def test_all_contestants_train_the_same(shared_order: bool, layers: Any, tmp_path: Path) -> None:
    task = make_task(save_backbone("bert", tmp_path / "backbone"), shared_order=shared_order, layers=layers)
    together = np.array(folded(task)())
    for packed in (False, True):
        alone = np.array(peft_one_by_one(task, packed=packed)())
        # fp32, three steps of AdamW at 3e-4.
        np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.ptp(together) > 1e-3  # members apart


def test_the_command_reports_ratios_of_its_own_seconds(tmp_path: Path) -> None:
    folder = save_backbone("bert", tmp_path / "backbone")
    options = ["--steps", "2", "--batch-pairs", "2", "--rounds", "3", "--members", "2", "--rank", "2", "--json"]
    result = CliRunner().invoke(app, ["bench", "train", "--backbone", str(folder), *options])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout.strip().splitlines()[-1])
    seconds = said["seconds"]
    assert all(len(turns) == 3 for turns in seconds.values())
    expected = statistics.median(
        a / b for a, b in zip(seconds["peft_packed"], seconds["folded_own_order"], strict=True)
    )
    assert said["ratio_over_peft_packed"] == pytest.approx(expected)
    assert said["tokens_per_second"]["peft_padded"] == pytest.approx(
        2 * said["tokens_a_member"] / statistics.median(seconds["peft_padded"])
    )
    assert max(said["largest_difference_of_last_losses"].values()) < 1e-4
    assert said["environment"]["packages"]["torch"]


def test_drawn_pairs_are_of_the_lengths_asked_for() -> None:
    pairs = draw_pairs(500, vocab_size=30_000)
    lengths = [len(ids) for pair in pairs for ids in (pair.chosen, pair.rejected)]
    assert sum(lengths) == num_tokens(pairs)
    assert max(lengths) <= 256
    assert 90 < statistics.median(lengths) < 120
    assert draw_pairs(500, vocab_size=30_000) == pairs
