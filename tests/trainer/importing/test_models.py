"""Whole reward models, imported: they score as Transformers does, one unpadded sequence at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from quorum_trainer.importing.build import ImportOptions, import_models
from tests.trainer.importing.saved_models import (
    PAIRS,
    own_ids,
    save_model,
    served_ids,
    served_scores,
    transformers_scores,
)

OPTIONS = ImportOptions(name="toy")
# fp32: packed sdpa against eager attention, logits of order 1 to 10 through three layers.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}
NAMES = [
    "bert", "roberta", "modernbert", "modernbert-mean", "distilbert", "electra", "deberta-v3",
    "llama", "llama-own-pad", "llama-no-pad", "qwen3", "mistral", "gemma", "gemma2", "gemma3", "gpt2",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_imported_model_scores_as_transformers(name: str, tmp_path: Path) -> None:
    folder = save_model(name, tmp_path / "model")
    bundle = import_models([str(folder)], tmp_path / "bundle", OPTIONS).bundle
    expected = transformers_scores(folder, [own_ids(folder, *pair) for pair in PAIRS])
    assert len({round(score, 3) for score in expected}) == len(PAIRS)
    np.testing.assert_allclose(np.array(served_scores(bundle.path))[:, 0], expected, **TOLERANCE)
    assert bundle.manifest.kind == "single"
    assert bundle.manifest.backbone.source == "bundle:backbone"
    calibration = bundle.manifest.members[0].calibration
    assert (calibration.mean, calibration.scale, bundle.manifest.pair_temperature) == (0.0, 1.0, 1.0)
    assert bundle.manifest.metrics == {}
