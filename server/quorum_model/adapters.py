"""LoRA adapters in PEFT's own format, read and written without building a PEFT model.

    folder (adapter_config.json, adapter_model.safetensors)  <-->  AdapterState

Refuses what the folded layer would not compute exactly. Knows nothing of bundles, members or training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from quorum_model.errors import BundleCorrupt, Unsupported

_PREFIX = "base_model.model."
# Fields of PEFT's config that the folded layer honours or that do not change scores; any other must be at its default.
_HONOURED = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
        "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
        "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save",
        "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config",
        "target_modules", "task_type", "use_rslora",
    }
)  # fmt: skip
# Initialisations that leave the base weights alone; the others (pissa, olora, corda, loftq, …) change them at load.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """One module's update `scaling * B A`. a: (r, d_in); b: (d_out, r); both as PEFT stores them."""

    a: Tensor
    b: Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class AdapterState:
    """An adapter: its updates by module name inside the sequence-classification model, and the saved head, if any."""

    lora: dict[str, LoraWeights]
    head: dict[str, Tensor] = field(default_factory=dict)


def read_adapter(folder: Path) -> AdapterState:
    """Read a PEFT LoRA adapter.

    Raises:
        Unsupported: another adapter type, or a LoRA variant that is not exact here.
        BundleCorrupt: no readable config, or tensors without their partner or of unfitting shape.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, OSError) as error:  # no JSON, or not what PEFT expects in it
        raise BundleCorrupt(f"{folder.name}: adapter_config.json cannot be read by PEFT") from error
    _check_config(config, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    pairs: dict[str, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        for part in ("lora_A", "lora_B"):
            if name.endswith(f".{part}.weight"):
                pairs.setdefault(name.removesuffix(f".{part}.weight"), {})[part] = tensor
                break
        else:
            if "lora_" in name:
                raise Unsupported(f"{folder.name}: {name} is a LoRA variant that is not scored exactly here")
            head[name] = tensor
    lora = {}
    for name, pair in sorted(pairs.items()):
        if len(pair) != 2 or pair["lora_A"].shape[0] != pair["lora_B"].shape[1]:
            raise BundleCorrupt(f"{folder.name}: lora_A and lora_B of {name} do not fit together")
        lora[name] = LoraWeights(pair["lora_A"], pair["lora_B"], _scaling(config, name, pair["lora_A"].shape[0]))
    return AdapterState(lora, head)


def _check_config(config: Any, folder: Path) -> None:
    if not isinstance(config, LoraConfig):
        raise Unsupported(f"{folder.name}: adapter type {config.peft_type} is not supported, only LoRA")
    plain = LoraConfig()
    refused = [
        name
        for name in (entry.name for entry in fields(config))
        if name not in _HONOURED and getattr(config, name) != getattr(plain, name)
    ]
    if config.init_lora_weights not in _PLAIN_INITIALISATIONS:
        refused.append(f"init_lora_weights={config.init_lora_weights}")
    if refused:
        raise Unsupported(f"{folder.name}: {', '.join(refused)} would not be scored exactly")


def _scaling(config: LoraConfig, name: str, rank: int) -> float:
    alpha = config.lora_alpha
    if config.alpha_pattern:
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), alpha)
    return float(alpha) / (math.sqrt(rank) if config.use_rslora else rank)


def write_adapter(
    folder: Path, state: AdapterState, *, base_source: str, alpha: float, head_modules: list[str]
) -> None:
    """Write an adapter so that `PeftModel.from_pretrained` gives the same scores.

    Modules of another rank or scaling than alpha / r get a pattern of their own.

    Args:
        folder: created; adapter_config.json and adapter_model.safetensors go into it.
        state: the updates, and the head.
        base_source: what `base_model_name_or_path` says.
        alpha: LoRA's alpha, of the modules of the largest rank.
        head_modules: modules of the head (PEFT's modules_to_save); empty for an adapter without a head.
    """
    ranks = {name: weights.a.shape[0] for name, weights in state.lora.items()}
    rank = max(ranks.values())
    # PEFT divides alpha by the module's own rank.
    alphas = {name: weights.scaling * ranks[name] for name, weights in state.lora.items()}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern={name: own for name, own in ranks.items() if own != rank},
        # 1e-6: a scaling that went through fp32 on its way.
        alpha_pattern={name: own for name, own in alphas.items() if not math.isclose(own, alpha, rel_tol=1e-6)},
        target_modules=sorted(state.lora),
        modules_to_save=head_modules or None,
        task_type="SEQ_CLS" if head_modules else None,
        base_model_name_or_path=base_source,
        inference_mode=True,
    )
    folder.mkdir(parents=True)
    config.save_pretrained(str(folder))
    _sort_modules(folder / "adapter_config.json")
    tensors: dict[str, Tensor] = {_PREFIX + name: tensor for name, tensor in state.head.items()}
    for name, weights in state.lora.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = weights.a
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = weights.b
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "adapter_model.safetensors",
              metadata={"format": "pt"})  # fmt: skip


def _sort_modules(path: Path) -> None:
    """PEFT keeps modules in a set, which every process writes in another order: equal adapters are equal files."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values["target_modules"] = sorted(values["target_modules"])
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def merge_adapter(model: torch.nn.Module, state: AdapterState) -> None:
    """Add an adapter's updates into the weights of `model`, in place, computed in fp32 or better.

    Raises:
        BundleCorrupt: a module that the model does not have.
    """
    modules = dict(model.named_modules())
    for name, lora in state.lora.items():
        if name not in modules:
            raise BundleCorrupt(f"the adapter updates {name}, which this backbone does not have")
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
        update = (lora.b.to(exact) @ lora.a.to(exact)) * lora.scaling
        if type(modules[name]).__name__ == "Conv1D":
            update = update.T
        with torch.no_grad():
            weight.copy_((weight.to(exact) + update.to(weight.device)).to(weight.dtype))


def stack_adapters(states: Sequence[Mapping[str, LoraWeights]], name: str) -> tuple[Tensor, Tensor, Tensor]:
    """One module's updates of all members, stacked; smaller ranks and absent modules are zeros, which is exact.

    Returns:
        a (K, d_in, r), b (K, r, d_out), scaling (K,).
    """
    present = [state[name] for state in states if name in state]
    rank = max(weights.a.shape[0] for weights in present)
    d_in, d_out = present[0].a.shape[1], present[0].b.shape[0]
    if any(weights.a.shape[1] != d_in or weights.b.shape[0] != d_out for weights in present):
        raise BundleCorrupt(f"the members' updates of {name} have different shapes")
    # Members may be saved in different dtypes: the widest of them, at least fp32, loses nothing.
    dtype = torch.float64 if any(weights.a.dtype == torch.float64 for weights in present) else torch.float32
    a = torch.zeros(len(states), d_in, rank, dtype=dtype)
    b = torch.zeros(len(states), rank, d_out, dtype=dtype)
    scaling = torch.ones(len(states), dtype=dtype)
    for member, state in enumerate(states):
        if name in state:
            weights = state[name]
            own = weights.a.shape[0]
            a[member, :, :own] = weights.a.T
            b[member, :own, :] = weights.b.T
            scaling[member] = weights.scaling
    return a, b, scaling
