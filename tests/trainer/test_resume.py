"""Runs that survive: killed in any stage and resumed, the bundle is bit for bit that of a run that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from quorum_model.bundle.read import read_bundle
from quorum_trainer.config import ConfigError, TrainConfig
from quorum_trainer.prepare import find_base, load_data
from quorum_trainer.runs.run_folder import RunFolder
from quorum_trainer.training.ensemble import train_ensemble
from quorum_trainer.training.keeper import TrainingInterrupted
from quorum_trainer.training.loop import Surroundings
from quorum_trainer.training.reports import Evaluation, Silent, StepReport

PHASE = {"epochs": 4, "batch_pairs": 8, "lr": 5e-3}
LORA = {"rank": 2, "alpha": 4, "dropout": 0.1}
TWO_PHASES: dict[str, Any] = {
    "phase1": {**PHASE, "method": "shared_adapter", "lora": LORA},
    "phase2": {**PHASE, "lora": LORA},
    "diversity": {"bootstrap": True, "lr_spread": 1.5, "dropout_spread": 0.05, "anchor": 1e-3},
    "checkpoint_minutes": 0,
}
SINGLES: dict[str, Any] = {
    "kind": "singles", "members": 2, "phase1": {**PHASE, "method": "full"}, "phase2": None, "checkpoint_minutes": 0,
}  # fmt: skip
EARLY = {"epochs": 4, "batch_pairs": 8, "lr": 5e-2, "evaluate_every": 0.5, "patience": 2, "lora": LORA}


def command(config: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "quorum_client.cli", "train", str(config), "--out", str(out), *options]


def train(config: Path, out: Path, *options: str) -> str:
    done = subprocess.run(command(config, out, *options), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def kill_after(config: Path, out: Path, line: str, number: signal.Signals, *options: str) -> int:
    """Send a signal once the run has said a line; the step after it is under way or done by then."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    with subprocess.Popen(
        command(config, out, *options), stderr=subprocess.PIPE, text=True, env=environment, stdout=subprocess.DEVNULL
    ) as process:
        assert process.stderr is not None
        for said in process.stderr:
            if line in said:
                process.send_signal(number)
                break
        process.stderr.read()
        return process.wait(timeout=100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (TWO_PHASES, ["phase 1: step 7 of", "phase 2: step 9 of"]),
        ({**TWO_PHASES, "phase2": {**EARLY, "order": "shared"}}, ["phase 2: step 13 of"]),
        (SINGLES, ["m00: step 5 of", "m01: step 11 of"]),
    ],
    ids=["two-phases", "early-stopping", "singles"],
)
def test_killed_and_resumed_is_as_never_killed(
    changes: dict[str, Any], lines: list[str], make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(make_config(**changes).model_dump(mode="json", exclude_none=True)))
    train(path, tmp_path / "alone")
    options: list[str] = []
    for line in lines:
        assert kill_after(path, tmp_path / "killed", line, signal.SIGKILL, *options) == -signal.SIGKILL
        assert not (tmp_path / "killed").exists()
        options = ["--resume"]
    said = train(path, tmp_path / "killed", "--resume")
    assert "goes on after step" in said
    assert read_bundle(tmp_path / "alone").version == read_bundle(tmp_path / "killed").version


@pytest.mark.slow
def test_a_signal_stops_with_a_checkpoint(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = make_config(**{**TWO_PHASES, "checkpoint_minutes": 60})
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    assert kill_after(path, tmp_path / "out", "phase 1: step 7 of", signal.SIGTERM) == 1
    assert (tmp_path / "out.run" / "checkpoint.safetensors").is_file()
    assert "phase 1: goes on after step" in train(path, tmp_path / "out", "--resume")


class StopAt(Silent):
    """Asks the run to stop after a step."""

    def __init__(self, folder: RunFolder, stage: str, step: int) -> None:
        self.folder, self.place = folder, (stage, step)

    def step(self, report: StepReport) -> None:
        if (report.stage, report.step) == self.place:
            self.folder.ask_to_stop()


@pytest.mark.parametrize("place", [("phase 1", 5), ("phase 2", 1), ("phase 2", 20)])
def test_stopped_at_any_step_the_members_end_the_same(
    place: tuple[str, int], make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(**TWO_PHASES)
    base = find_base(config)
    pairs = load_data(config, base.encoder).train
    expected = train_ensemble(config, base.start, pairs)
    folder = RunFolder(tmp_path / "run", checkpoint_seconds=1e9)
    with pytest.raises(TrainingInterrupted):
        train_ensemble(config, base.start, pairs, Surroundings(keeper=folder, reporter=StopAt(folder, *place)))
    resumed = train_ensemble(
        config, base.start, pairs, Surroundings(keeper=RunFolder(tmp_path / "run", checkpoint_seconds=1e9))
    )
    # The backbone's own head is drawn at every load and used by nobody.
    left, right = (
        {name: value for name, value in trained.model.state_dict().items() if name != "model.classifier.weight"}
        for trained in (expected, resumed)
    )
    assert left.keys() == right.keys()
    assert [name for name in left if not left[name].equal(right[name])] == []


class Looks(Silent):
    """Keeps what was seen on held-out pairs."""

    def __init__(self) -> None:
        self.seen: list[Evaluation] = []
        self.steps = 0

    def step(self, report: StepReport) -> None:
        self.steps += 1

    def evaluated(self, evaluation: Evaluation) -> None:
        self.seen.append(evaluation)


def test_early_stopping_goes_back_to_the_best(make_config: Callable[..., TrainConfig]) -> None:
    from quorum_trainer.training.held_out import look

    # A rate at which it gets worse before long.
    config = make_config(phase2={**EARLY, "epochs": 12, "lr": 0.2, "lora": {"rank": 4, "alpha": 8}})
    base = find_base(config)
    data = load_data(config, base.encoder)
    looks = Looks()
    around = Surroundings(reporter=looks, held_out=data.held_out)
    trained = train_ensemble(config, base.start, data.train, around)
    losses = [evaluation.loss for evaluation in looks.seen]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2  # patience
    assert looks.steps < 12 * 42 // 8
    assert look(trained.model, data.held_out).loss == pytest.approx(losses[best], abs=1e-5)  # type: ignore[arg-type]


def test_a_finished_run_leaves_no_tensors_behind(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    from quorum_trainer.command import run

    assert run(make_config(checkpoint_minutes=0), tmp_path / "out") is not None
    with pytest.raises(ConfigError, match="nothing to resume"):
        run(make_config(), tmp_path / "other", resume=True)
    left = sorted(path.name for path in (tmp_path / "out.run").rglob("*") if path.is_file())
    assert left == [".lock", "finished.yaml"]
