"""Configs: paths, environment, and options that would be ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from quorum_trainer.config import ConfigError, PhaseTwo, read_config

BASE: dict[str, Any] = {
    "name": "toy", "kind": "lora", "backbone": "models/tiny", "phase2": {"lr": 1e-3},
    "data": [{"name": "a", "path": "data/a.jsonl"}],
}  # fmt: skip


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return path


def test_paths_are_relative_to_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.setenv("WHERE", str(tmp_path / "elsewhere"))
    monkeypatch.chdir("/")
    config = read_config(write(tmp_path, data=[{"name": "a", "path": "a.jsonl"}, {"name": "b", "path": "${WHERE}/b"}]))
    assert config.backbone == str(tmp_path / "models" / "tiny")
    assert [source.path for source in config.data] == [str(tmp_path / "a.jsonl"), str(tmp_path / "elsewhere" / "b")]


def test_a_backbone_that_is_no_folder_is_left_as_it_is(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, backbone="org/name")).backbone == "org/name"
    assert read_config(write(tmp_path, backbone="package:some-package")).backbone == "package:some-package"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": [{"name": "a", "path": "${NOT_SET_ANYWHERE}/a"}]}, "environment variable is not set"),
        ({"phase1": {"method": "full", "lr": 1e-5, "lora": {"rank": 4}}}, "lora would be ignored"),
        ({"name": "my ensemble"}, "name"),
        ({"data": [{"name": "a", "path": "x", "phase": 1}]}, "for phase 1, which this run does not have"),
        ({"data": [{"name": "all", "path": "x"}]}, "cannot be called all"),
        ({"diversity": {"dropout_spread": 0.2}}, "dropout_spread"),
        (
            {"phase2": {"lr": 1, "lora": {"dropout": 0.6}}, "diversity": {"dropout_spread": 0.5}},
            "dropout_spread",
        ),
        ({"phase2": {"lr": 1, "epochs": float("inf")}}, "epochs"),
        ({"phase2": {"lr": 1, "patience": 2}}, "patience needs evaluate_every"),
        ({"backbone": "package:x", "revision": "main"}, "a package has a version"),
        ({"start_from": "bundle"}, "one of backbone and start_from"),
        ({"kind": "single", "phase2": None, "phase1": {"method": "full", "lr": 1}, "members": 2}, "has one member"),
        ({"kind": "singles", "phase2": None, "phase1": {"method": "heads", "lr": 1}}, "must be 'full'"),
        ({"quantize": "4bit", "phase1": {"method": "full", "lr": 1}}, "cannot be changed"),
        ({"preset": "papers"}, "there is no 'papers'"),
        ({"name": "../up"}, "name"),
        ({"data": [{"name": "a", "path": "x"}, {"name": "a", "path": "y"}]}, "names must differ"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(write(tmp_path, **changes))


def test_a_file_that_is_not_there_or_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not YAML"):
        read_config(tmp_path / "bad.yaml")


def test_the_papers_preset_is_filled_in_under_what_the_file_says(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, preset="paper", phase2={"lr": 1e-4}))
    assert config.members == 3
    assert config.phase1 is not None
    assert config.phase2 is not None
    assert (config.phase1.method, config.phase1.lr, config.phase1.warmup) == ("full", 3e-6, 0.03)
    assert (config.phase2.lr, config.phase2.schedule) == (1e-4, "constant")
    assert config.loss.centring == 0


def test_a_saved_config_reads_back(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, phase1={"method": "heads", "lr": 1e-3}))
    saved = tmp_path / "saved.yaml"
    saved.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    assert config.phase1 is not None
    assert read_config(saved) == config


@pytest.mark.parametrize(
    ("options", "device", "expected"),
    [
        ({"order": "own"}, "cpu", 1),
        ({"order": "own"}, "cuda", 5),
        ({"order": "shared"}, "cpu", 5),
        ({"order": "own", "members_at_once": 3}, "cpu", 3),
        ({"order": "own", "members_at_once": 8}, "cuda", 5),
    ],
)
def test_members_in_a_pass(options: dict[str, Any], device: str, expected: int) -> None:
    assert PhaseTwo(lr=1e-4, **options).members_in_a_pass(5, device) == expected
