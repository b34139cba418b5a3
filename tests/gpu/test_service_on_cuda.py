"""`quorum serve` on a CUDA device: a real server whose engine computes in bf16 and compiles its layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quorum_client import Client, ScoreItem
from quorum_model.benchmark.random_ensemble import draw_ensemble
from quorum_model.loading import load_member_scorer
from tests.integration.server_process import REAL_ENGINE, server
from tests.reference.tiny_models import random_sequences
from tests.trainer.conftest import save_backbone


def test_served_scores_are_the_cpus(tmp_path: Path) -> None:
    folder = save_backbone("llama", tmp_path / "backbone")
    bundle = draw_ensemble(folder, kind="lora", members=3, rank=4, layers="all", max_length=64).write(tmp_path / "own")
    sequences = random_sequences([5, 40, 17, 9, 30])
    expected = load_member_scorer(bundle, device="cpu", dtype="float32").score(sequences).raw
    with server(REAL_ENGINE, bundle.path, device="cuda", dtype="bfloat16") as running, Client(running.url) as client:
        response = client.score([ScoreItem(token_ids=ids) for ids in sequences], normalize=False)
    actual = np.array([item.members for item in response.results]).T
    assert np.sqrt(np.mean((actual - expected) ** 2)) <= 0.15 * expected.std()
