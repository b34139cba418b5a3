"""Where training pairs come from.

Knows no torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quorum_model.bundle.manifest import NAME_PATTERN
from quorum_trainer.config.base import ConfigModel


class DataSource(ConfigModel):
    """A set of preference pairs: a file, or a data set of the hub.

    path: JSON lines (.gz too). hub: an id or a folder for `datasets.load_dataset`; of it `split` (train if left out),
    of its configuration `subset`, at `revision`.
    held_out: share of its prompts kept out of training, for accuracy and calibration.
    max_pairs: take at most so many pairs, drawn at random. phase: trained on in this phase alone; in both if left out.
    weight: how often a pair is seen in an epoch, relative to once: 2 is twice, 0.5 every second epoch on average.
    """

    name: str = Field(pattern=NAME_PATTERN)
    path: str | None = Field(None, min_length=1)
    hub: str | None = Field(None, min_length=1)
    split: str | None = Field(None, min_length=1)
    subset: str | None = None
    revision: str | None = None
    licence: str | None = None
    held_out: float = Field(0.1, ge=0, lt=1)
    max_pairs: int | None = Field(None, ge=1)
    phase: Literal[1, 2] | None = None
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_name(self) -> DataSource:
        if self.name == "all":
            raise ValueError("a source cannot be called all: that is the name of all together")
        return self

    @model_validator(mode="after")
    def _check_place(self) -> DataSource:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path and hub")
        of_hub = {"split": self.split, "subset": self.subset, "revision": self.revision}
        ignored = [name for name, value in of_hub.items() if value is not None]
        if self.path is not None and ignored:
            raise ValueError(f"a file has no {ignored[0]}: it would be ignored")
        return self
