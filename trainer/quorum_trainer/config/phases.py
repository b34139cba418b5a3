"""How the two phases of training are run.

Knows no torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from quorum_trainer.config.base import ConfigModel

Schedule = Literal["constant", "linear", "cosine"]
Layers = Literal["all", "top-half", "top-third", "top-sixth"] | Annotated[list[int], Field(min_length=1)]


class LoraOptions(ConfigModel):
    """An adapter on every linear layer of the chosen layers. dropout acts on the adapter's input."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    layers: Layers = "all"


class Optimisation(ConfigModel):
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
