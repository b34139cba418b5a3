"""Peers of a GPU's users, on a CPU: they compute what padded PEFT does, member by member."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from quorum_model.benchmark.padded import PaddedPeft
from quorum_model.benchmark.padding_free import PaddingFreePeft
from quorum_model.benchmark.random_ensemble import draw_ensemble
from tests.model.benchmark.tiny_backbone import save_tiny_backbone
from tests.reference.tiny_models import random_sequences

SEQUENCES = random_sequences([5, 40, 17, 1, 9, 9, 23])


@pytest.mark.parametrize("name", ["llama", "mistral", "bert", "roberta"])
def test_padding_free_and_unsorted_peers_compute_what_padded_peft_does(name: str, tmp_path: Path) -> None:
    folder = save_tiny_backbone(name, tmp_path / "backbone")
    ensemble = draw_ensemble(folder, kind="lora", members=3, rank=2, layers="all", max_length=40)
    adapters = ensemble.write_adapters(tmp_path / "adapters")
    cpu = torch.device("cpu")
    padded = PaddedPeft(folder, adapters, dtype=torch.float32, device=cpu, sequences=SEQUENCES)
    expected = padded.one_after_another(SEQUENCES, 1)  # each alone
    packed = PaddingFreePeft(folder, adapters, dtype=torch.float32, device=cpu, pooling=ensemble.pooling)
    tolerance = 1e-4 * expected.std()  # fp32: other kernels, other order of summation
    assert packed.fastest_budget(SEQUENCES) > 0
    for budget in (1, 50, 1000):
        np.testing.assert_allclose(packed.one_after_another(SEQUENCES, budget), expected, rtol=0, atol=tolerance)
    for size in (1, 3, 7):
        np.testing.assert_allclose(padded.in_given_order(SEQUENCES, size), expected, rtol=0, atol=tolerance)
    assert min(np.abs(expected[i] - expected[j]).max() for i in range(3) for j in range(i)) > 100 * tolerance
