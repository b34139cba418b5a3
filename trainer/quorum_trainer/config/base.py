"""What every part of a training config is: checked, closed and frozen.

Knows no torch.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from quorum_client.errors import InvalidRequest


class ConfigError(InvalidRequest):
    """The config cannot be used; the message names the field."""

    code = "invalid_config"


class ConfigModel(BaseModel):
    """Base of every part of a config: unknown fields are refused, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)
