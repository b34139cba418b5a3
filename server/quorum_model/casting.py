"""Moving a model to a device and a dtype: which numbers are rounded, and which are too few or too delicate for it.

    model in fp32  --cast_weights-->  the same model: matrices in bf16, norms and rotary frequencies exact

Knows nothing of ensembles.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def cast_weights(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Move a model in fp32 and round its weights, and only those; once.

    Buffers that are computed stay: rounded to bf16, a rotary frequency is off by an angle that grows with the position.
    Norms stay in fp32 where rounding would change them. Their factors touch every activation of every token, always in
    the same direction, so that no averaging helps: in MiniLM, rounded norms alone move scores as far as all rounded
    matrices do, and they are a thousandth of the weights. A checkpoint that was saved in bf16 has nothing to lose.

    Weights are copied even where nothing else changes: until then they are pages of the file, and follow whatever is
    written into it.
    """
    kept = _keep_norms(model, dtype, device)
    computed = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    for tensor in [*model.parameters(), *(b for name, b in model.named_buffers() if name not in computed)]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(tensor.dtype if id(tensor) in kept else dtype, copy=True)
    model.to(device)


def _keep_norms(model: nn.Module, dtype: torch.dtype, device: torch.device) -> set[int]:
    """Let norms that stay as they are work between layers of another dtype; ids of their parameters.

    Those of the body: a head computes in a dtype of its own.
    """
    kept: set[int] = set()
    body: nn.Module = getattr(model, "base_model", model)
    for module in body.modules():
        own = list(module.parameters(recurse=False))
        if not is_norm(module) or all(_survives(parameter, dtype) for parameter in own):
            continue
        kept.update(map(id, own))
        if isinstance(module, nn.LayerNorm) and device.type != "cpu":  # only the CPU's kernel takes two dtypes
            module.register_forward_pre_hook(lambda norm, args: (args[0].to(norm.weight.dtype), *args[1:]))
        module.register_forward_hook(lambda _norm, _args, output: output.to(dtype))
    return kept


def is_norm(module: nn.Module) -> bool:
    """Whether it normalises activations: torch's own, or one of the many that Transformers' models bring along."""
    name = type(module).__name__
    if name == "IntLayerNorm":  # of I-BERT: gives a pair
        return False
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or name.endswith(("RMSNorm", "LayerNorm"))


def _survives(parameter: Tensor, dtype: torch.dtype) -> bool:
    numbers: Any = parameter.data
    return not numbers.is_floating_point() or torch.equal(numbers.to(dtype).to(numbers.dtype), numbers)
