"""The training config: one YAML file, checked whole before anything is loaded.

    CONFIG.yaml  --read_config-->  TrainConfig

Paths are relative to the config's folder; `~` is a home and `${NAME}` the environment's. Knows no torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quorum_client.errors import InvalidRequest
from quorum_model.bundle.manifest import NAME_PATTERN

Schedule = Literal["constant", "linear", "cosine"]
Layers = Literal["all", "top-half", "top-third", "top-sixth"] | Annotated[list[int], Field(min_length=1)]


class ConfigError(InvalidRequest):
    """The config cannot be used; the message names the field."""

    code = "invalid_config"


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSource(_Config):
    """A file of preference pairs, JSON lines (.gz too).

    held_out: share of its prompts kept out of training, for accuracy and calibration.
    max_pairs: take at most so many pairs, drawn at random. phase: trained on in this phase alone; in both if left out.
    """

    name: str = Field(min_length=1)
    path: str
    licence: str | None = None
    held_out: float = Field(0.1, ge=0, lt=1)
    max_pairs: int | None = Field(None, ge=1)
    phase: Literal[1, 2] | None = None


class LoraOptions(_Config):
    """An adapter on every linear layer of the chosen layers. dropout acts on the adapter's input."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    layers: Layers = "all"


class Optimisation(_Config):
    """How one phase is optimised. lr: peak learning rate; warmup: share of the steps; clip: gradient norm, a member's.

    head_lr: the heads' own peak learning rate; `lr` if left out.
    """

    epochs: float = Field(1, gt=0)
    batch_pairs: int = Field(16, ge=1)
    lr: float = Field(gt=0)
    head_lr: float | None = Field(None, gt=0)
    schedule: Schedule = "cosine"
    warmup: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)


class PhaseOne(Optimisation):
    """Phase 1, as the linear ensemble: K heads together, in one data order, and what lies under them.

    method: `full` trains the whole backbone, `shared_adapter` one adapter for all members, `heads` the heads alone.
    """

    method: Literal["full", "shared_adapter", "heads"]
    lora: LoraOptions = LoraOptions()

    @model_validator(mode="after")
    def _check_lora(self) -> PhaseOne:
        if "lora" in self.model_fields_set and self.method != "shared_adapter":
            raise ValueError(f"method '{self.method}' has no adapter: lora would be ignored")
        return self


class PhaseTwo(Optimisation):
    """Phase 2: the backbone frozen; every member's adapter and head.

    order: `own` gives every member its own data order; `shared` one for all, so that the trunk runs once.
    """

    lora: LoraOptions = LoraOptions()
    order: Literal["own", "shared"] = "own"


class TrainConfig(_Config):
    """Everything that a training run depends on."""

    name: str = Field(pattern=NAME_PATTERN)
    kind: Literal["linear", "lora"]
    backbone: str = Field(description="`package:NAME`, a folder (relative to the config's), or a hub id")
    revision: str | None = None
    members: int = Field(5, ge=1, le=64)
    pooling: Literal["last", "first", "mean"] | None = Field(None, description="the architecture's own if left out")
    max_length: int = Field(512, ge=8)
    truncation: Literal["left", "right"] = "left"
    data: list[DataSource] = Field(min_length=1)
    phase1: PhaseOne | None = None
    phase2: PhaseTwo | None = None
    centring: float = Field(0.01, ge=0, description="gamma of the term gamma * (r_chosen + r_rejected)^2")
    seed: int = 0
    licence: str | None = None

    @model_validator(mode="after")
    def _check_phases(self) -> TrainConfig:
        if self.kind == "linear" and (self.phase1 is None or self.phase2 is not None):
            raise ValueError("kind 'linear' is trained by phase1 alone")
        if self.kind == "lora" and self.phase2 is None:
            raise ValueError("kind 'lora' needs phase2")
        if len({source.name for source in self.data}) != len(self.data):
            raise ValueError("data names must differ")
        return self

    def member_seeds(self) -> list[int]:
        """The number that each member's random streams derive from."""
        return [1000 * self.seed + member for member in range(self.members)]


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
