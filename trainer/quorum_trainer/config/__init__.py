"""The training config: one YAML file, checked whole before anything is loaded.

base.py  ←  data.py (where pairs come from), phases.py (how they are trained on)  ←  train.py  ←  read.py
"""

from quorum_trainer.config.base import ConfigError, ConfigModel
from quorum_trainer.config.data import DataSource
from quorum_trainer.config.phases import (
    Diversity,
    Layers,
    LoraOptions,
    LossOptions,
    Optimisation,
    PhaseOne,
    PhaseTwo,
    Schedule,
)
from quorum_trainer.config.read import read_config
from quorum_trainer.config.train import TrainConfig

__all__ = [
    "ConfigError",
    "ConfigModel",
    "DataSource",
    "Diversity",
    "Layers",
    "LoraOptions",
    "LossOptions",
    "Optimisation",
    "PhaseOne",
    "PhaseTwo",
    "Schedule",
    "TrainConfig",
    "read_config",
]
