"""A whole training run as data.

Knows no torch.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from quorum_model.bundle.manifest import NAME_PATTERN
from quorum_trainer.config.base import ConfigModel
from quorum_trainer.config.data import DataSource
from quorum_trainer.config.phases import Diversity, LossOptions, PhaseOne, PhaseTwo


class TrainConfig(ConfigModel):
    """Everything that a training run depends on.

    kind: `single` (one model), `singles` (K whole models), `linear` (K heads on one backbone), `lora` (K adapters with
    heads on one backbone).
    backbone: `package:NAME`, a folder (relative to the config's), or a hub id; revision: of a hub id.
    start_from: instead of a backbone, a bundle (folder or hub id) whose backbone, shared adapter and heads phase 2
    starts from.
    dtype: of a frozen backbone; what is trained stays in float32, a backbone trained in full computes in `dtype` by
    autocast. quantize: a frozen backbone in 4 bits (bitsandbytes, CUDA only).
    gradient_checkpointing: recompute activations in the backward pass: less memory, a third more time.
    trackers: of accelerate. checkpoint_minutes: time between checkpoints.
    """

    name: str = Field(pattern=NAME_PATTERN)
    kind: Literal["single", "singles", "linear", "lora"]
    backbone: str | None = None
    revision: str | None = None
    start_from: str | None = None
    members: int = Field(5, ge=1, le=64)
    pooling: Literal["last", "first", "mean"] | None = Field(None, description="the architecture's own if left out")
    max_length: int = Field(512, ge=8)
    truncation: Literal["left", "right"] = "left"
    data: list[DataSource] = Field(min_length=1)
    phase1: PhaseOne | None = None
    phase2: PhaseTwo | None = None
    loss: LossOptions = LossOptions()
    diversity: Diversity = Diversity()
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantize: Literal["4bit"] | None = None
    gradient_checkpointing: bool = False
    trackers: tuple[str, ...] = ("tensorboard",)
    checkpoint_minutes: float = Field(10, ge=0)
    seed: int = 0
    licence: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_member_of_a_single(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") == "single":
            return {"members": 1, **values}
        return values

    @model_validator(mode="after")
    def _check_start(self) -> TrainConfig:
        if (self.backbone is None) == (self.start_from is None):
            raise ValueError("give one of backbone and start_from")
        if self.start_from is not None and (self.kind != "lora" or self.phase1 is not None):
            raise ValueError("start_from is for kind 'lora' with phase2 alone")
        if self.revision is not None and (self.backbone or "").startswith("package:"):
            raise ValueError("revision is for hub ids: a package has a version")
        if self.start_from is not None and (self.pooling is not None or self.revision is not None):
            raise ValueError("start_from brings its own pooling and revision")
        if len({source.name for source in self.data}) != len(self.data):
            raise ValueError("data names must differ")
        return self

    @model_validator(mode="after")
    def _check_phases(self) -> TrainConfig:
        if self.kind == "lora" and self.phase2 is None:
            raise ValueError("kind 'lora' needs phase2")
        if self.kind != "lora" and (self.phase1 is None or self.phase2 is not None):
            raise ValueError(f"kind '{self.kind}' is trained by phase1 alone")
        if self.kind == "single" and self.members != 1:
            raise ValueError("kind 'single' has one member")
        if self.kind == "singles" and self.phase1 is not None and self.phase1.method != "full":
            raise ValueError("kind 'singles' trains whole models: phase1.method must be 'full'")
        if self.quantize is not None and self.phase1 is not None and self.phase1.method != "heads":
            raise ValueError("quantize: a backbone in 4 bits cannot be changed, which this phase1 does")
        return self

    @model_validator(mode="after")
    def _check_diversity(self) -> TrainConfig:
        lora = self.phase2.lora if self.phase2 is not None else None
        if self.diversity.nuclear_norm and lora is None:
            raise ValueError("diversity.nuclear_norm is for members with adapters: kind 'lora'")
        spread = self.diversity.dropout_spread
        if spread and (lora is None or not spread <= lora.dropout < 1 - spread):
            raise ValueError("diversity.dropout_spread: phase2.lora.dropout minus and plus it must lie in [0, 1)")
        return self

    @model_validator(mode="after")
    def _check_data_phases(self) -> TrainConfig:
        phases = {1: self.phase1, 2: self.phase2}
        for source in self.data:
            if source.phase is not None and phases[source.phase] is None:
                raise ValueError(f"data {source.name} is for phase {source.phase}, which this run does not have")
        return self

    def member_seeds(self) -> list[int]:
        """The number that each member's random streams derive from."""
        return [1000 * self.seed + member for member in range(self.members)]
