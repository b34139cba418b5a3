"""A run folder: whole files or none, the right run or a refusal."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quorum_model.adapters import LoraWeights
from quorum_trainer.config import ConfigError, TrainConfig
from quorum_trainer.runs.run_folder import RunCorrupt, RunFolder
from quorum_trainer.training.keeper import Snapshot, TrainingInterrupted
from quorum_trainer.training.stages import StageResult


def snapshot(step: int) -> Snapshot:
    return Snapshot({"parameter.0": torch.full((2,), float(step))}, {"step": step, "best_loss": math.inf})


def result() -> StageResult:
    lora = {"body.layer.0.query": LoraWeights(torch.ones(2, 3), torch.zeros(4, 2), 0.1)}
    heads = [{"score.weight": torch.full((1, 3), float(member))} for member in range(2)]
    return StageResult(heads, [lora, lora], {"layer.0.weight": torch.eye(2)})


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", checkpoint_seconds=0).offer("phase 1", lambda: snapshot(3), stop=False)
    again = RunFolder(tmp_path / "run", checkpoint_seconds=0)
    found = again.resume("phase 1")
    assert found is not None
    assert found.numbers == {"step": 3, "best_loss": math.inf}
    assert found.tensors["parameter.0"].tolist() == [3.0, 3.0]
    assert again.resume("phase 2") is None


def test_a_result_comes_back_and_ends_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, checkpoint_seconds=0)
    folder.offer("phase 1", lambda: snapshot(3), stop=False)
    assert folder.result("phase 1") is None
    folder.finish("phase 1", result())
    assert folder.resume("phase 1") is None
    found, expected = folder.result("phase 1"), result()
    assert found is not None
    for left, right in zip(found.heads, expected.heads, strict=True):
        assert left.keys() == right.keys()
        torch.testing.assert_close(left["score.weight"], right["score.weight"], rtol=0, atol=0)
    for adapter, wanted in zip(found.adapters, expected.adapters, strict=True):
        ((name, lora),) = adapter.items()
        assert torch.equal(lora.a, wanted[name].a)
        assert torch.equal(lora.b, wanted[name].b)
        assert lora.scaling == 0.1
    assert found.backbone is not None
    assert torch.equal(found.backbone["layer.0.weight"], torch.eye(2))


def test_nothing_is_written_before_its_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, checkpoint_seconds=3600)
    folder.offer("phase 1", lambda: pytest.fail("too early"), stop=folder.is_asked_to_stop())
    folder.ask_to_stop()
    with pytest.raises(TrainingInterrupted, match="--resume"):
        folder.offer("phase 1", lambda: snapshot(4), stop=folder.is_asked_to_stop())
    found = folder.resume("phase 1")
    assert found is not None
    assert found.numbers["step"] == 4


def test_only_one_worker_writes(tmp_path: Path, make_config: Callable[..., TrainConfig]) -> None:
    reader = RunFolder(tmp_path / "run", checkpoint_seconds=0, is_writer=False)
    reader.claim(make_config(), {}, resume=False)
    reader.offer("phase 1", lambda: pytest.fail("not its task"), stop=False)
    assert not (tmp_path / "run").exists()


def test_a_broken_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"torn")
    with pytest.raises(RunCorrupt, match="checkpoint"):
        RunFolder(tmp_path, checkpoint_seconds=0).resume("phase 1")


def test_a_folder_is_of_one_run(tmp_path: Path, make_config: Callable[..., TrainConfig]) -> None:
    config = make_config()
    hashes = {"data toy": "aa", "backbone": "bb"}

    def claim(config: TrainConfig, hashes: dict[str, str], *, resume: bool) -> RunFolder:
        folder = RunFolder(tmp_path / "run", checkpoint_seconds=0)
        folder.claim(config, hashes, resume=resume)
        return folder

    with pytest.raises(ConfigError, match="nothing to resume"):
        claim(config, hashes, resume=True)
    first = claim(config, hashes, resume=False)
    with pytest.raises(ConfigError, match="another process"):
        claim(config, hashes, resume=True)
    del first  # and its lock
    with pytest.raises(ConfigError, match="--resume"):
        claim(config, hashes, resume=False)
    assert config.phase2 is not None
    lighter = config.phase2.model_copy(update={"members_at_once": 1, "micro_batch_pairs": 2})
    claim(config.model_copy(update={"phase2": lighter, "checkpoint_minutes": 3.0}), hashes, resume=True)
    with pytest.raises(ConfigError, match="data toy differs"):
        claim(config, {**hashes, "data toy": "bb"}, resume=True)
    with pytest.raises(ConfigError, match="backbone differs"):
        claim(config, {**hashes, "backbone": "cc"}, resume=True)
    faster = config.phase2.model_copy(update={"lr": 1.0})
    with pytest.raises(ConfigError, match=r"phase2\.lr differs"):
        claim(config.model_copy(update={"phase2": faster}), hashes, resume=True)
    claim(config, hashes, resume=True).close()
    claim(config, hashes, resume=False)  # a finished run is in nobody's way
