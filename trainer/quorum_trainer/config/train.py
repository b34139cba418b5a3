"""A whole training run as data.

Knows no torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quorum_model.bundle.manifest import NAME_PATTERN
from quorum_trainer.config.base import ConfigModel
from quorum_trainer.config.data import DataSource
from quorum_trainer.config.phases import PhaseOne, PhaseTwo


class TrainConfig(ConfigModel):
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
