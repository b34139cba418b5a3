"""Named starting points of a config: what the file itself says goes over them.

`paper`: the LoRA ensemble of arXiv 2401.16635 (appendix, tables 2 and 3): K = 3, phase 1 in full, phase 2 by adapters,
one epoch each, no centring. The paper names neither rank nor batch size in its text: those stay at our defaults.
"""

from __future__ import annotations

from typing import Any

from quorum_trainer.config.base import ConfigError

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "kind": "lora",
        "members": 3,
        "loss": {"centring": 0.0},
        "phase1": {
            "method": "full",
            "epochs": 1,
            "lr": 3e-6,
            "schedule": "cosine",
            "warmup": 0.03,
            "weight_decay": 0.0,
        },
        "phase2": {"epochs": 1, "lr": 5e-5, "schedule": "constant", "warmup": 0.03},
    }
}


def apply_preset(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in what `values` leaves out from the preset that its `preset` names, field by field.

    A phase that the file sets to null stays away.

    Raises:
        ConfigError: no such preset.
    """
    name = values.get("preset")
    if name is None:
        return values
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"preset: there is no {name!r}; there are {', '.join(sorted(PRESETS))}")
    return _over(PRESETS[name], {key: value for key, value in values.items() if key != "preset"})


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _over(base[key], value) if both else value
    return merged
