"""`quorum train`, from config to bundle: what is written scores as what was trained, here, by PEFT, and by its card."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from quorum_client.cli import app
from quorum_client.types import ScoreItem, ScoreRequest
from quorum_model.bundle.read import Bundle
from quorum_model.local import LocalScorer
from quorum_trainer.command import run
from quorum_trainer.config import ConfigError, TrainConfig
from quorum_trainer.measure import Measured
from tests.trainer.conftest import save_backbone, write_pairs

ONE_PHASE = {"epochs": 2, "batch_pairs": 8, "lr": 5e-3}
RECIPES: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora-mean": {"pooling": "mean"},
    "lora-shared-adapter": {"phase1": {**ONE_PHASE, "method": "shared_adapter", "lora": {"rank": 4, "alpha": 4}}},
    "lora-full": {"phase1": {**ONE_PHASE, "method": "full"}},
    "lora-top": {"phase2": {**ONE_PHASE, "order": "shared", "lora": {"layers": "top-third", "dropout": 0.1}}},
    "linear-full": {"kind": "linear", "phase1": {**ONE_PHASE, "method": "full"}, "phase2": None},
    "linear-shared-adapter": {"kind": "linear", "phase1": {**ONE_PHASE, "method": "shared_adapter"}, "phase2": None},
    "linear-heads": {"kind": "linear", "phase1": {**ONE_PHASE, "method": "heads"}, "phase2": None},
    "singles": {"kind": "singles", "phase1": {**ONE_PHASE, "method": "full"}, "phase2": None},
    "lora-diverse": {
        "phase2": {**ONE_PHASE, "lora": {"rank": 4, "dropout": 0.1, "layers": 0.5}, "micro_batch_pairs": 3},
        "diversity": {"bootstrap": True, "lr_spread": 2, "dropout_spread": 0.1, "anchor": 1e-3, "nuclear_norm": 0.1},
        "loss": {"label_smoothing": 0.1, "margins": True, "centring": 0.02},
    },
    "lora-bf16": {"dtype": "bfloat16", "gradient_checkpointing": True},
    "full-bf16": {"kind": "linear", "dtype": "bfloat16", "phase1": {**ONE_PHASE, "method": "full"}, "phase2": None},
    "llama": {"backbone": "llama"},
    "llama-linear": {"backbone": "llama", "kind": "linear", "phase1": {**ONE_PHASE, "method": "full"}, "phase2": None},
    "modernbert-mean": {"backbone": "modernbert", "pooling": "mean"},
    "roberta": {"backbone": "roberta"},
}


def train(config: TrainConfig, target: Path) -> tuple[Bundle, Measured]:
    """All of `quorum train` but its command line."""
    finished = run(config, target)
    assert finished is not None
    return finished


def snippet_of(bundle: Path) -> str:
    """The Python block of the model card."""
    blocks = re.findall(r"```python\n(.*?)```", (bundle / "README.md").read_text(), flags=re.DOTALL)
    return next(block for block in blocks if "AutoModelForSequenceClassification" in block)


@pytest.mark.parametrize("recipe", RECIPES)
def test_trained_bundle_scores_as_its_card_says(
    recipe: str, make_config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, measured = train(make_config(**RECIPES[recipe]), tmp_path / "bundle")
    scorer = LocalScorer.open(str(bundle.path))  # every hash, and the golden self-test
    request = ScoreRequest(inputs=[ScoreItem(prompt="What is the capital of France?", response="Paris.")])
    served = scorer.score(request).results[0]

    monkeypatch.chdir(bundle.path)
    script = tmp_path / "card.py"
    script.write_text(snippet_of(bundle.path))
    card = runpy.run_path(str(script))
    # fp32, calibrated units: eager attention and another order of summation.
    assert served.members == pytest.approx(card["scores"], abs=1e-4)
    assert served.score == pytest.approx(card["score"], abs=1e-4)

    assert len({round(score, 6) for score in served.members or []}) == 3  # members apart
    assert measured.metrics["held_out"]["all"]["num_pairs"] > 0
    assert all(member.calibration.scale > 0 for member in bundle.manifest.members)


def test_phase_two_changes_every_member_and_learns(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = make_config(phase2={"epochs": 12, "batch_pairs": 8, "lr": 5e-3, "lora": {"rank": 4, "alpha": 8}})
    bundle, measured = train(config, tmp_path / "bundle")
    held_out = measured.metrics["held_out"]["all"]
    assert held_out["ensemble_mean"] > 0.9  # yes before no
    assert min(held_out["members"]) > 0.8
    assert held_out["longer_wins"] == pytest.approx(1.0)  # "yes" is longer than "no"
    assert bundle.manifest.training_data[0].num_pairs + held_out["num_pairs"] == 60


def test_the_same_config_gives_the_same_bundle(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    first, _ = train(make_config(), tmp_path / "first")
    second, _ = train(make_config(), tmp_path / "second")
    assert first.version == second.version


def test_command_writes_a_bundle_and_ends_with_json(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config().model_dump(mode="json", exclude_none=True)))
    result = CliRunner().invoke(app, ["train", str(path), "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.strip().splitlines()[-1])
    assert summary["bundle"] == str(tmp_path / "out")
    assert np.isfinite(summary["pair_temperature"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["training_data"][0]["name"] == "toy"
    assert len(manifest["training_data"][0]["sha256"]) == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "lora", "phase2": None}, "needs phase2"),
        ({"kind": "linear"}, "trained by phase1 alone"),
        ({"surprise": 1}, "surprise"),
        ({"members": 0}, "members"),
    ],
)
def test_bad_configs_name_the_field(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = {
        "name": "toy", "kind": "lora", "backbone": "x", "data": [{"name": "a", "path": "a.jsonl"}],
        "phase2": {"lr": 1e-3},
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (values | change).items() if value is not None}))
    result = CliRunner().invoke(app, ["train", str(path)])
    assert result.exit_code == 1
    assert message in result.output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 3: not JSON"),
        ('{"prompt": "a", "chosen": "b"}', "line 3: rejected"),
        ('{"prompt": "a", "chosen": ["b"], "rejected": "c"}', "line 3: chosen"),
        ('{"prompt": [], "chosen": "b", "rejected": "c"}', "line 3: prompt"),
    ],
)
def test_bad_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    from quorum_trainer.data import DataError, read_pairs

    good = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([good, good, line, good]) + "\n")
    with pytest.raises(DataError, match=message):
        read_pairs(path)


def test_an_existing_target_is_left_alone(tmp_path: Path) -> None:
    save_backbone("bert", tmp_path / "backbone")
    write_pairs(tmp_path / "pairs.jsonl")
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {"name": "toy", "kind": "lora", "backbone": str(tmp_path / "backbone"), "phase2": {"lr": 1e-3},
             "data": [{"name": "a", "path": "pairs.jsonl"}]}
        )
    )  # fmt: skip
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    result = CliRunner().invoke(app, ["train", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert (tmp_path / "out" / "mine").read_text() == "keep"


def test_one_model_is_a_single(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    values = make_config().model_dump(mode="json", exclude_none=True, exclude={"members", "phase2"})
    config = TrainConfig.model_validate({**values, "kind": "single", "phase1": {**ONE_PHASE, "method": "full"}})
    bundle, measured = train(config, tmp_path / "bundle")
    assert bundle.manifest.kind == "single"
    assert len(bundle.manifest.members) == len(measured.calibration) == 1
    assert LocalScorer.open(str(bundle.path)).context.version == bundle.version


@pytest.mark.parametrize("first", ["linear-shared-adapter", "linear-full", "lora-shared-adapter"])
def test_phase_two_starts_from_a_bundle(first: str, make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """With a learning rate of almost nothing, phase 2 must give the scores of what it started from."""
    parent, _ = train(make_config(**RECIPES[first]), tmp_path / "parent")
    phase = {"epochs": 1, "batch_pairs": 8, "lr": 1e-12, "lora": {"rank": 2}}
    config = make_config(backbone="bert", phase2=phase).model_copy(
        update={"backbone": None, "start_from": str(parent.path)}
    )
    bundle, _ = train(config, tmp_path / "child")
    assert bundle.manifest.parent_version == parent.version
    request = ScoreRequest(
        inputs=[ScoreItem(prompt="how one two", response="yes"), ScoreItem(prompt="how", response="no one")],
        normalize=False,
    )
    if first.startswith("linear"):
        before, after = (LocalScorer.open(str(b.path)).score(request).results for b in (parent, bundle))
        for left, right in zip(before, after, strict=True):
            assert left.members == pytest.approx(right.members, abs=1e-5)  # fp32; a step of 1e-12 is none
    name = "shared_adapter/adapter_model.safetensors"
    assert bundle.manifest.files.get(name) == parent.manifest.files.get(name)
    assert (bundle.manifest.shared_adapter is None) == (first == "linear-full")
    if first.startswith("lora"):  # the parent's own adapters are not taken over
        assert LocalScorer.open(str(bundle.path)).score(request).results[0].members


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phase2": {**ONE_PHASE, "lora": {"dropout": 0.1}}}, "lora.dropout needs a backbone that can be packed"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing needs a backbone that can be packed"),
    ],
)
def test_what_an_unpackable_backbone_cannot_do_is_refused_before_training(
    changes: dict[str, Any], message: str, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(make_config("deberta-v3", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_others_cannot_load_is_not_pushed(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder of this machine"):
        run(make_config(), tmp_path / "out", for_hub=True)
    phase1 = {**ONE_PHASE, "method": "full"}
    finished = run(make_config(phase1=phase1), tmp_path / "out", for_hub=True)
    assert finished is not None
    texts = [path.read_text() for path in finished[0].path.rglob("*.json")]
    assert not any(str(tmp_path) in text for text in texts)  # nothing of this machine in a bundle that is whole


def test_a_child_says_what_its_parent_was_trained_on(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    parent, _ = train(make_config(**RECIPES["linear-heads"]), tmp_path / "parent")
    config = make_config().model_copy(update={"backbone": None, "start_from": str(parent.path)})
    bundle, _ = train(config, tmp_path / "child")
    assert len(bundle.manifest.training_data) == 2
