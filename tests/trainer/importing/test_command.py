"""The command: options in, a bundle and a summary out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from quorum_model.bundle.read import read_bundle
from quorum_trainer.importing.command import import_bundle
from quorum_trainer.importing.plan import InvalidOption
from tests.trainer.conftest import write_pairs
from tests.trainer.importing.saved_models import save_model


@pytest.fixture
def app() -> typer.Typer:
    """`quorum import` as a program of its own."""
    own = typer.Typer()
    own.command()(import_bundle)
    return own


def test_writes_a_bundle_and_ends_with_json(app: typer.Typer, tmp_path: Path) -> None:
    folders = [str(save_model("llama", tmp_path / f"model{seed}", seed=seed)) for seed in (0, 1)]
    pairs = str(write_pairs(tmp_path / "pairs.jsonl", num_pairs=12))
    out = tmp_path / "made" / "mine"
    options = ["--out", str(out), "--max-length", "64", "--truncation", "right", "--pairs", pairs]
    result = CliRunner().invoke(app, [*folders, *options, "--licence", "MIT", "--json"])
    assert result.exit_code == 0, result.output
    bundle = read_bundle(out)
    summary = json.loads(result.stdout.strip().splitlines()[-1])
    assert summary["version"] == bundle.version
    assert (summary["name"], summary["kind"], summary["members"]) == ("mine", "singles", ["m00", "m01"])
    assert summary["calibrated"]
    assert summary["held_out"]["all"]["num_pairs"] == 12
    assert (bundle.manifest.max_length, bundle.manifest.truncation, bundle.manifest.licence) == (64, "right", "MIT")
    assert "chat template" in result.stderr


def test_says_which_format_it_had_to_assume_and_that_nothing_is_calibrated(app: typer.Typer, tmp_path: Path) -> None:
    folder = str(save_model("bert", tmp_path / "model"))
    result = CliRunner().invoke(app, [folder, "--out", str(tmp_path / "bundle"), "--name", "toy"])
    assert result.exit_code == 0, result.output
    assert "no chat template: prompt and response as one text" in result.stderr
    assert "--template FILE" in result.stderr
    assert "scores are the models' own logits" in result.stderr


def test_a_template_file_replaces_the_tokenizers(app: typer.Typer, tmp_path: Path) -> None:
    folder = str(save_model("bert", tmp_path / "model"))
    template = tmp_path / "pair.jinja"
    template.write_text("[CLS] {{ messages[0]['content'] }} [SEP] {{ messages[1]['content'] }} [SEP]")
    result = CliRunner().invoke(app, [folder, "--out", str(tmp_path / "bundle"), "--template", str(template)])
    assert result.exit_code == 0, result.output
    assert read_bundle(tmp_path / "bundle").manifest.prompt_format.template == template.read_text()


def test_a_folder_that_is_no_name_needs_one(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["x", "--out", str(tmp_path / "no name")])
    assert isinstance(result.exception, InvalidOption)
    assert "--name" in result.exception.message
