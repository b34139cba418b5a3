"""A run on disk: its resolved config, what finished stages left behind, and one checkpoint of the stage under way.

    OUT.run/  config.yaml   results/<stage>.safetensors   checkpoint.safetensors   trackers' files   finished.yaml

Every file is written beside its name and renamed into place: after a kill at any moment the folder holds the last
whole state. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from quorum_client.errors import QuorumError
from quorum_model.bundle.write import sync_entry
from quorum_trainer.config import ConfigError, ConfigModel
from quorum_trainer.training.keeper import Snapshot, TrainingInterrupted
from quorum_trainer.training.stages import StageResult

# Fields that may change between a run and its resumption: they change memory and what is said, not what is computed
# (but for rounding, and the masks of adapters' dropout under other micro batches).
_FREE = {"trackers", "checkpoint_minutes", "gradient_checkpointing"}
_FREE_ENDINGS = (".micro_batch_pairs", ".members_at_once", ".url", ".deadline_s", ".max_in_flight")


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
        self._lock = FileLock(path / ".lock")
        self._last = time.monotonic()
        self._stop = False
        if is_writer:
            (path / "results").mkdir(parents=True, exist_ok=True)

    def claim(self, config: ConfigModel, hashes: dict[str, str], *, resume: bool) -> None:
        """Write down what this run is, or check that it is the one that is resumed; and keep other processes out.

        Args:
            config: of the run.
            hashes: of everything else that it depends on: data, backbone.
            resume: go on with the run that is here, rather than begin one.

        Raises:
            ConfigError: the folder holds a run and `resume` was not said, or the other way round; holds another run,
                with the field that differs; or somebody is at it.
        """
        if not self._is_writer:
            return
        self._acquire()
        values = {"config": config.model_dump(mode="json"), "hashes": hashes}
        if self._config_path.exists():
            if not resume:
                raise ConfigError(f"{self.path} holds an unfinished run: go on with --resume, or remove it")
            _check_same(yaml.safe_load(self._config_path.read_text(encoding="utf-8")), values, self._config_path)
        elif resume:
            raise ConfigError(f"{self.path} holds no unfinished run: there is nothing to resume")
        else:
            text = yaml.safe_dump(values, sort_keys=False)
            _write_whole(self._config_path, lambda path: path.write_text(text, encoding="utf-8"))

    def close(self) -> None:
        """The run is finished: what was kept for it goes, what it was stays, as finished.yaml."""
        shutil.rmtree(self.path / "results")
        self._config_path.replace(self.path / "finished.yaml")
        self._lock.release()

    def is_asked_to_stop(self) -> bool:
        """See Keeper."""
        return self._stop

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(f"{self.path}: another process is at this run") from error

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

    def offer(self, stage: str, take: Callable[[], Snapshot], *, stop: bool) -> None:
        """See Keeper."""
        if not stop and time.monotonic() - self._last < self._seconds:
            return
        if self._is_writer:
            snapshot = take()
            numbers = {"stage": stage, "numbers": json.dumps(snapshot.numbers)}
            _write_tensors(self._checkpoint_path, snapshot.tensors, numbers)
        self._last = time.monotonic()
        if stop:
            raise TrainingInterrupted(f"stopped in {stage}; go on with --resume ({self.path} holds what was done)")

    @property
    def _config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def _checkpoint_path(self) -> Path:
        return self.path / "checkpoint.safetensors"

    def _result_path(self, stage: str) -> Path:
        return self.path / "results" / f"{stage.replace(' ', '-')}.safetensors"


def _check_same(old: dict[str, Any], new: dict[str, Any], place: Path) -> None:
    before, now = _flat(old), _flat(new)
    for key in sorted(set(before) | set(now)):
        name = key.partition(".")[2]
        if name in _FREE or name.endswith(_FREE_ENDINGS) or name.startswith("trackers."):
            continue
        if before.get(key) != now.get(key):
            raise ConfigError(f"{place} is of another run: {name} differs; give another --out")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by their path: `config.phase2.lr`, `config.data.0.path`."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not parts:
        return {prefix.rstrip("."): value}
    return {key: leaf for name, part in parts for key, leaf in _flat(part, f"{prefix}{name}.").items()}


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


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """All of a folder or nothing, also when the machine goes down; what was there goes."""
    beside = path.with_name(f".{path.name}.new")
    for old in (beside, path):
        shutil.rmtree(old, ignore_errors=True)
    beside.mkdir(parents=True)
    write(beside)
    for entry in (*beside.rglob("*"), beside):
        sync_entry(entry)
    beside.rename(path)
    sync_entry(path.absolute().parent)


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """All of a file or nothing, also when the machine goes down."""
    beside = path.with_name(f".{path.name}.new")
    write(beside)
    sync_entry(beside)
    beside.replace(path)
    sync_entry(path.parent)
