"""`quorum inspect`: tables for people, one JSON object for programs, an error for what is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from quorum_model.bundle.manifest import TrainingData
from quorum_model.bundle.read import Bundle
from quorum_model.command import inspect
from quorum_model.errors import BundleCorrupt
from tests.model.bundle.small_bundle import make_bundle

app = typer.Typer()
app.command()(inspect)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    data = [TrainingData(name="a[b]c", sha256="cd" * 32, num_pairs=77)]
    return make_bundle(tmp_path / "b", metrics={"held_out": {"all": {"accuracy": 0.75}}}, training_data=data)


def test_json_is_the_manifest_with_version_and_sizes(bundle: Bundle) -> None:
    result = CliRunner().invoke(app, [str(bundle.path), "--json"])
    assert result.exit_code == 0
    shown = json.loads(result.stdout.splitlines()[-1])
    assert (shown["name"], shown["version"], shown["kind"]) == ("small", bundle.version, "lora")
    assert [member["calibration"]["scale"] for member in shown["members"]] == [1.0, 2.0]
    for name, file in shown["files"].items():
        assert file == {
            "sha256": bundle.manifest.files[name],
            "size_bytes": len((bundle.path / name).read_bytes()),
        }


def test_tables_show_members_files_and_metrics(bundle: Bundle) -> None:
    result = CliRunner().invoke(app, [str(bundle.path)], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["version", bundle.version] in lines
    assert ["m01", "0.2500", "2.0000", "1"] in lines
    assert ["all", "0.7500"] in lines
    assert ["a[b]c", "77", "not", "stated"] in lines
    golden_bytes = len((bundle.path / "golden.json").read_bytes())
    assert ["golden.json", str(golden_bytes)] in lines


def test_a_damaged_bundle_is_an_error_and_no_summary(bundle: Bundle) -> None:
    (bundle.path / "golden.json").write_text("[]")
    result = CliRunner().invoke(app, [str(bundle.path)])
    assert isinstance(result.exception, BundleCorrupt)
    assert "m00" not in result.stdout
