"""Where training pairs come from.

Knows no torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quorum_trainer.config.base import ConfigModel


class DataSource(ConfigModel):
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
