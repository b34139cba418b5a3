"""A run on disk: its resolved config, what finished stages left behind, and one checkpoint of the stage under way.

    runs/NAME.run/  config.yaml   results/<stage>.safetensors   checkpoint.safetensors   trackers' files

Every file is written beside its name and renamed into place: after a kill at any moment the folder holds the last
whole state. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quorum_client.errors import QuorumError
from quorum_trainer.config import ConfigError, TrainConfig
from quorum_trainer.training.keeper import Snapshot, TrainingInterrupted
from quorum_trainer.training.stages import StageResult

# Fields that may change between a run and its resumption: they do not touch a number.
_FREE = {"trackers", "checkpoint_minutes"}


class RunCorrupt(QuorumError):
    """A file of the run folder cannot be read: begin anew."""

    code = "run_corrupt"


class RunFolder:
    """Keeps a run in a folder.

    Args:
        path: of the folder; made where it is not there.
        checkpoint_seconds: time between checkpoints.
        is_writer: one of several workers writes, all read.
    """

    def __init__(self, path: Path, *, checkpoint_seconds: float, is_writer: bool = True) -> None:
        self.path = path
        self._seconds = checkpoint_seconds
        self._is_writer = is_writer
        self._last = time.monotonic()
        self._stop = False
        if is_writer:
            (path / "results").mkdir(parents=True, exist_ok=True)

    def claim(self, config: TrainConfig, data_hashes: dict[str, str], *, resume: bool) -> None:
        """Write down what this run is, or check that it is the one that is resumed.

        Raises:
            ConfigError: the folder holds a run and `resume` was not said; or holds another run, with the field that
                differs.
        """
        values = {"config": config.model_dump(mode="json"), "data": data_hashes}
        place = self.path / "config.yaml"
        if place.exists():
            if not resume:
                raise ConfigError(f"{self.path} holds an unfinished run: go on with --resume, or remove it")
            _check_same(yaml.safe_load(place.read_text(encoding="utf-8")), values, place)
        elif self._is_writer:
            _write_whole(place, lambda path: path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8"))

    def ask_to_stop(self) -> None:
        """Stop after the step under way, with a checkpoint."""
        self._stop = True

    def result(self, stage: str) -> StageResult | None:
        """See Keeper."""
        found = _read(self._result_path(stage))
        return None if found is None else StageResult.from_tensors(found[0])

    def finish(self, stage: str, result: StageResult) -> None:
        """See Keeper."""
        if self._is_writer:
            _write_tensors(self._result_path(stage), result.to_tensors(), {})
            self._checkpoint_path.unlink(missing_ok=True)

    def resume(self, stage: str) -> Snapshot | None:
        """See Keeper."""
        found = _read(self._checkpoint_path)
        if found is None or found[1]["stage"] != stage:
            return None
        return Snapshot(found[0], json.loads(found[1]["numbers"]))

    def offer(self, stage: str, take: Callable[[], Snapshot]) -> None:
        """See Keeper."""
        stopping = self._stop
        if not stopping and time.monotonic() - self._last < self._seconds:
            return
        if self._is_writer:
            snapshot = take()
            numbers = {"stage": stage, "numbers": json.dumps(snapshot.numbers)}
            _write_tensors(self._checkpoint_path, snapshot.tensors, numbers)
        self._last = time.monotonic()
        if stopping:
            raise TrainingInterrupted(f"stopped in {stage}; go on with --resume ({self.path} holds what was done)")

    @property
    def _checkpoint_path(self) -> Path:
        return self.path / "checkpoint.safetensors"

    def _result_path(self, stage: str) -> Path:
        return self.path / "results" / f"{stage.replace(' ', '-')}.safetensors"


def _check_same(old: dict[str, dict[str, object]], new: dict[str, dict[str, object]], place: Path) -> None:
    for part in ("config", "data"):
        for key in sorted(set(old[part]) | set(new[part])):
            if key not in _FREE and old[part].get(key) != new[part].get(key):
                raise ConfigError(f"{place} is of another run: {part} {key} differs; give another --out")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise RunCorrupt(f"{path}: {error}") from error


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    _write_whole(path, lambda place: save_file(ready, place, metadata={"format": "pt", **metadata}))


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """All of a file or nothing, also when the machine goes down."""
    beside = path.with_name(f".{path.name}.new")
    write(beside)
    descriptor = os.open(beside, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    beside.replace(path)
