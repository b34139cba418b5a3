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
from quorum_trainer.config.train import TrainConfig


def read_config(path: Path) -> TrainConfig:
    """Read and check a config file.

    Raises:
        ConfigError: no such file, not YAML, an unknown or missing field, an environment variable that is not set.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    try:
        config = TrainConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the config"
        raise ConfigError(f"{path}: {where}: {first['msg']}") from error
    data = [
        source.model_copy(update={"path": str(_resolve(source.path, path.parent, f"data {source.name}"))})
        for source in config.data
    ]
    backbone = _resolve(config.backbone, path.parent, "backbone")
    changes = {"data": data, "backbone": str(backbone) if backbone.is_dir() else config.backbone}
    return config.model_copy(update=changes)


def _resolve(name: str, folder: Path, what: str) -> Path:
    expanded = os.path.expandvars(name)
    if "$" in expanded:
        raise ConfigError(f"{what}: {name}: an environment variable is not set")
    return (folder / Path(expanded).expanduser()).resolve()
