"""From a YAML file to a checked config, before anything is loaded.

    CONFIG.yaml  --read_config-->  TrainConfig

Paths are relative to the config's folder; `~` is a home and `${NAME}` the environment's.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from pydantic import ValidationError

from quorum_trainer.config.base import ConfigError
from quorum_trainer.config.presets import apply_preset
from quorum_trainer.config.train import TrainConfig


def read_config(path: Path) -> TrainConfig:
    """Read and check a config file.

    Raises:
        ConfigError: no such file, not YAML, an unknown or missing field, an environment variable that is not set.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    try:
        config = TrainConfig.model_validate(apply_preset(raw) if isinstance(raw, dict) else raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the config"
        raise ConfigError(f"{path}: {where}: {first['msg']}") from error
    return _with_paths(config, path.parent)


def _with_paths(config: TrainConfig, folder: Path) -> TrainConfig:
    """What names a file or folder becomes an absolute path; what is no folder here stays as it is: a hub id."""
    data = []
    for source in config.data:
        what = f"data {source.name}"
        if source.path is not None:
            data.append(source.model_copy(update={"path": str(_resolve(source.path, folder, what))}))
        else:
            data.append(source.model_copy(update={"hub": _folder_or_id(source.hub, folder, what)}))
    if config.revision is not None and _folder_or_id(config.backbone, folder, "backbone") != config.backbone:
        raise ConfigError("revision is for hub ids: a folder has none")
    changes = {
        "data": data,
        "backbone": _folder_or_id(config.backbone, folder, "backbone"),
        "start_from": _folder_or_id(config.start_from, folder, "start_from"),
    }
    return config.model_copy(update=changes)


def _folder_or_id(name: str | None, folder: Path, what: str) -> str | None:
    if name is None:
        return None
    resolved = _resolve(name, folder, what)
    return str(resolved) if resolved.is_dir() else name


def _resolve(name: str, folder: Path, what: str) -> Path:
    expanded = os.path.expandvars(name)
    if "$" in expanded:
        raise ConfigError(f"{what}: {name}: an environment variable is not set")
    return (folder / Path(expanded).expanduser()).resolve()
