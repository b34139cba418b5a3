"""How a backbone is held in memory while members are trained on it: dtype, 4 bits, recomputed activations.

    folder, config  --load_for_training-->  Backbone on its device

Knows nothing of members or data.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from quorum_model.adapters import AdapterState, merge_adapter
from quorum_model.backbone import Backbone, load_backbone
from quorum_model.casting import cast_weights
from quorum_trainer.config import ConfigError, TrainConfig

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_for_training(
    config: TrainConfig,
    folder: Path,
    device: torch.device,
    *,
    in_full: bool = False,
    shared_adapter: AdapterState | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Backbone:
    """A backbone loaded anew, so that nothing of an earlier stage remains in it.

    Args:
        config: dtype, quantize, gradient_checkpointing.
        folder: the backbone's.
        device: where it goes.
        in_full: it is trained itself: its weights stay in float32, whatever it computes in.
        shared_adapter: merged into it in float32, before weights are rounded.
        weights: of its body, as an earlier stage left them.

    Raises:
        ConfigError: what the config asks for cannot be had here.
    """
    if config.quantize is not None and (shared_adapter is not None or weights is not None):
        raise ConfigError(
            "quantize: phase 1 changes the weights, and what is in 4 bits cannot be changed: phase2 alone"
        )
    backbone = load_backbone(folder, quantization=_four_bits(device) if config.quantize else None)
    if shared_adapter is not None:
        merge_adapter(backbone.model, shared_adapter)
    if weights is not None:
        backbone.body.load_state_dict(weights)
    if config.quantize is None:
        cast_weights(backbone.model, torch.float32 if in_full else _DTYPES[config.dtype], device)
    if config.gradient_checkpointing:
        recompute_activations(backbone)
    return backbone


def autocast_dtype(config: TrainConfig) -> torch.dtype | None:
    """What a backbone that is trained in full computes in, where that is not its weights' own dtype."""
    return None if config.dtype == "float32" else _DTYPES[config.dtype]


def _four_bits(device: torch.device) -> Any:
    """QLoRA's settings (arXiv 2305.14314): NF4, double quantisation, bf16 arithmetic."""
    if device.type != "cuda":
        raise ConfigError("quantize: 4-bit weights need a CUDA device")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("quantize: pip install bitsandbytes")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=["classifier", "head", "pooler", "pre_classifier", "score"],  # heads stay exact
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def recompute_activations(backbone: Backbone) -> None:
    """Gradient checkpointing of Transformers, which is on only in layers in train mode; dropout stays off.

    The mode is a flag of each module: the layers themselves get it, what is inside them does not.

    Raises:
        ConfigError: the architecture has none.
    """
    if not backbone.body.supports_gradient_checkpointing:
        raise ConfigError("gradient_checkpointing: this architecture does not support it")
    backbone.body.gradient_checkpointing_enable({"use_reentrant": False})
    for module in backbone.body.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
            _silence_dropout(module)
    _silence_dropout(backbone.body.config)


def _silence_dropout(holder: object) -> None:
    """Some layers (OPT's, BART's, Falcon's) drop out by a rate of their own and not by a module."""
    for name, value in list(vars(holder).items()):
        if "dropout" in name and isinstance(value, float):
            setattr(holder, name, 0.0)
