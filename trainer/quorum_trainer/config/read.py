"""From a YAML file to a checked config, before anything is loaded.

    CONFIG.yaml  --read_config-->  TrainConfig
    CONFIG.yaml  --read_model-->   any other command's config

Paths are relative to the config's folder; `~` is a home and `${NAME}` the environment's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from quorum_trainer.config.base import ConfigError, ConfigModel
from quorum_trainer.config.presets import apply_preset
from quorum_trainer.config.train import TrainConfig

ConfigT = TypeVar("ConfigT", bound=ConfigModel)


def read_config(path: Path) -> TrainConfig:
    """Read and check the config of a training run.

    Raises:
        ConfigError: no such file, not YAML, an unknown or missing field, an environment variable that is not set.
    """
    return _with_paths(read_model(path, TrainConfig, prepare=apply_preset), path.parent)


def read_model(
    path: Path, model: type[ConfigT], *, prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> ConfigT:
    """Read and check a config file; paths in it stay as they are written.

    Args:
        path: of a YAML file.
        model: what it must be.
        prepare: what is done to the values before they are checked.

    Raises:
        ConfigError: no such file, not YAML, an unknown or missing field.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    try:
        return model.model_validate(prepare(raw) if prepare is not None and isinstance(raw, dict) else raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the config"
        raise ConfigError(f"{path}: {where}: {first['msg']}") from error


def _with_paths(config: TrainConfig, folder: Path) -> TrainConfig:
    """What names a file or folder becomes an absolute path; what is no folder here stays as it is: a hub id."""
    data = []
    for source in config.data:
        what = f"data {source.name}"
        if source.path is not None:
            data.append(source.model_copy(update={"path": str(resolve_path(source.path, folder, what))}))
        else:
            data.append(source.model_copy(update={"hub": folder_or_id(source.hub, folder, what)}))
    if config.revision is not None and folder_or_id(config.backbone, folder, "backbone") != config.backbone:
        raise ConfigError("revision is for hub ids: a folder has none")
    changes = {
        "data": data,
        "backbone": folder_or_id(config.backbone, folder, "backbone"),
        "start_from": folder_or_id(config.start_from, folder, "start_from"),
    }
    return config.model_copy(update=changes)


def folder_or_id(name: str | None, folder: Path, what: str) -> str | None:
    """The absolute path of a folder that is there; anything else is a hub id, and stays as it is."""
    if name is None:
        return None
    resolved = resolve_path(name, folder, what)
    return str(resolved) if resolved.is_dir() else name


def resolve_path(name: str, folder: Path, what: str) -> Path:
    """An absolute path, with `~` and the environment filled in. Raises: ConfigError: a variable is not set."""
    expanded = os.path.expandvars(name)
    if "$" in expanded:
        raise ConfigError(f"{what}: {name}: an environment variable is not set")
    return (folder / Path(expanded).expanduser()).resolve()
