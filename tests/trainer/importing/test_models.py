"""Whole reward models, imported: they score as Transformers does, one unpadded sequence at a time."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from quorum_model.local import LocalScorer
from quorum_trainer.importing.build import ImportOptions, import_models
from quorum_trainer.importing.plan import InvalidOption
from tests.trainer.conftest import write_pairs
from tests.trainer.importing.saved_models import (
    PAIRS,
    own_ids,
    save_model,
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_half_precision_checkpoints_keep_their_bytes_and_score_in_fp32(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = save_model(name, tmp_path / "model", dtype=dtype)
    bundle = import_models([str(folder)], tmp_path / "bundle", OPTIONS).bundle
    copied = bundle.path / "backbone" / "model.safetensors"
    assert copied.read_bytes() == (folder / "model.safetensors").read_bytes()
    assert {tensor.dtype for tensor in load_file(copied).values()} == {dtype}
    expected = transformers_scores(folder, [own_ids(folder, *pair) for pair in PAIRS])
    np.testing.assert_allclose(np.array(served_scores(bundle.path))[:, 0], expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_several_models_become_singles_in_the_order_given(name: str, tmp_path: Path) -> None:
    folders = [save_model(name, tmp_path / f"model{seed}", seed=seed) for seed in (2, 0, 1)]
    bundle = import_models([str(folder) for folder in folders], tmp_path / "bundle", OPTIONS).bundle
    assert bundle.manifest.kind == "singles"
    expected = [transformers_scores(folder, [own_ids(folder, *pair) for pair in PAIRS]) for folder in folders]
    assert np.ptp(expected, axis=0).min() > 0.1  # members apart: an order that is wrong would be seen
    np.testing.assert_allclose(np.array(served_scores(bundle.path)).T, expected, **TOLERANCE)


def test_a_sharded_model_and_unrelated_files(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "model")
    whole = transformers_scores(folder, [own_ids(folder, *pair) for pair in PAIRS])
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "notes.py"):
        (folder / name).write_bytes(b"not ours")
    bundle = import_models([str(folder)], tmp_path / "bundle", OPTIONS).bundle
    names = {Path(name).name for name in bundle.manifest.files}
    assert sum(name.startswith("model-") for name in names) > 1
    assert names.isdisjoint({"training_args.bin", "optimizer.pt", "trainer_state.json", "notes.py"})
    np.testing.assert_allclose(np.array(served_scores(bundle.path))[:, 0], whole, **TOLERANCE)


def test_another_pooling_is_the_mean_that_transformers_hidden_states_have(tmp_path: Path) -> None:
    folder = save_model("bert", tmp_path / "model")
    bundle = import_models([str(folder)], tmp_path / "bundle", replace(OPTIONS, pooling="mean")).bundle
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    expected = []
    for pair in PAIRS:
        with torch.no_grad():
            hidden = model.bert(torch.tensor([own_ids(folder, *pair)])).last_hidden_state
            expected.append(float(model.classifier(model.bert.pooler(hidden.mean(dim=1, keepdim=True)))))
    np.testing.assert_allclose(np.array(served_scores(bundle.path))[:, 0], expected, **TOLERANCE)
    assert bundle.manifest.pooling == "mean"


@pytest.mark.parametrize("name", ["bert", "llama", "llama-own-pad", "modernbert"])
def test_the_card_of_an_imported_bundle_gives_the_same_score(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(name, tmp_path / "model")
    bundle = import_models([str(folder)], tmp_path / "bundle", OPTIONS).bundle
    blocks = re.findall(r"```python\n(.*?)```", (bundle.path / "README.md").read_text(), flags=re.DOTALL)
    (tmp_path / "card.py").write_text(blocks[-1])
    monkeypatch.chdir(bundle.path)
    card = runpy.run_path(str(tmp_path / "card.py"))
    assert card["score"] == pytest.approx(served_scores(bundle.path)[0][0], abs=2e-5)  # fp32, as above


def test_max_length_is_what_the_model_takes(tmp_path: Path) -> None:
    folder = save_model("roberta", tmp_path / "model")
    assert (
        import_models([str(folder)], tmp_path / "a", OPTIONS).bundle.manifest.max_length == 78
    )  # 80 less 2 of RoBERTa
    short = import_models([str(folder)], tmp_path / "b", replace(OPTIONS, max_length=12, truncation="right")).bundle
    assert (short.manifest.max_length, short.manifest.truncation) == (12, "right")
    with pytest.raises(InvalidOption, match="--max-length is 79, but the model has positions for 78"):
        import_models([str(folder)], tmp_path / "c", replace(OPTIONS, max_length=79))
    assert not (tmp_path / "c").exists()


def test_pairs_calibrate_as_training_does(tmp_path: Path) -> None:
    folders = [save_model("llama", tmp_path / f"model{seed}", seed=seed) for seed in (0, 1)]
    path = write_pairs(tmp_path / "pairs.jsonl", num_pairs=20)
    imported = import_models([str(f) for f in folders], tmp_path / "bundle", replace(OPTIONS, pairs=path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    raw = {
        side: np.array(
            [transformers_scores(f, [own_ids(f, line["prompt"], line[side]) for line in lines]) for f in folders]
        )
        for side in ("chosen", "rejected")
    }
    # Design section 2: mean over both sides, RMS of the margins / sqrt 2; the rest from Transformers' own scores.
    means = (raw["chosen"].mean(axis=1) + raw["rejected"].mean(axis=1)) / 2
    scales = np.sqrt(((raw["chosen"] - raw["rejected"]) ** 2).mean(axis=1) / 2)
    members = imported.bundle.manifest.members
    np.testing.assert_allclose([member.calibration.mean for member in members], means, rtol=1e-4)
    np.testing.assert_allclose([member.calibration.scale for member in members], scales, rtol=1e-4)
    margins = ((raw["chosen"] - raw["rejected"]) / scales[:, None]).mean(axis=0)
    grid = np.exp(np.linspace(np.log(0.01), np.log(100), 4001))
    losses = [np.logaddexp(0, -tau * margins).mean() for tau in grid]
    assert imported.bundle.manifest.pair_temperature == pytest.approx(grid[int(np.argmin(losses))], rel=0.01)
    metrics = imported.bundle.manifest.metrics
    assert metrics["held_out"]["all"]["num_pairs"] == 20
    assert metrics["held_out"]["all"]["ensemble_mean"] == pytest.approx((margins > 0).mean())
    assert metrics["held_out_file"] == {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    LocalScorer.open(str(imported.bundle.path))  # the golden self-test, in calibrated units
