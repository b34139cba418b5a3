"""The layers of a model compiled, where that pays: on CUDA, where what lies between the products costs as much as they.

    EnsembleModel  --compile_layers-->  the same model, norms, activations, rotations and residuals fused

A kernel each for norm, gate, rotation and sum reads and writes all activations anew; of a decoder of a billion
parameters that is a third of the time. Products stay what they are (`folded.accumulate_product`), attention stays out
(`attention.attend`). Lengths and token counts are symbols, so that nothing is compiled again for another batch, nor
for another ensemble of the same shape. Tried and not believed: where the compiler fails or gives other scores, layers
run as they are, which is slower and as right. `TORCH_COMPILE_DISABLE=1` is PyTorch's own switch.

Knows nothing of bundles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from quorum_model.attention import ATTENTION_NAME, attend
from quorum_model.layers import layer_modules
from quorum_model.model import EnsembleModel

logger = logging.getLogger(__name__)

# Between kernels that are fused values are not rounded to bf16, so scores differ by that; other scores would differ by
# their own size. Relative to their norm; bf16 as in a bundle's self-test.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.25}
_PROBES = ((5, 9, 3), (40, 2, 17))
"""Lengths of the sequences of each trial: the second must not need a compilation of its own."""


def pays_to_compile(device: torch.device, dtype: torch.dtype) -> bool:
    """On CUDA in half precision. On a CPU it gains 6 %, for which nobody waits (ARCHITECTURE.md has the figures)."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def compile_layers(model: EnsembleModel, backend: str | Callable[..., Any] = "inductor") -> bool:
    """Compile the layers of a packed model in place, all but one whose work is narrowed.

    Args:
        model: complete, in evaluation mode.
        backend: of `torch.compile`.

    Returns:
        Whether layers are compiled now.
    """
    layers = layer_modules(model.backbone)
    if model.attention != "packed" or layers is None:
        return False
    chosen = [layer for layer in layers if not model.narrows(layer)]
    with torch.inference_mode():
        expected = [_scores(model, lengths) for lengths in _PROBES]
        uncompiled: Callable[..., Any] = torch.compiler.disable
        AttentionInterface.register(ATTENTION_NAME, uncompiled(attend))
        for layer in chosen:
            layer.compile(dynamic=True, backend=backend)
        reason = _why_not(model, expected)
    if reason is None:
        return True
    for layer in chosen:
        layer._compiled_call_impl = None
    logger.warning("layers run as they are, not compiled: %s", reason)
    return False


def _why_not(model: EnsembleModel, expected: list[Tensor]) -> str | None:
    try:
        actual = [_scores(model, lengths) for lengths in _PROBES]
    except Exception as error:  # a compiler fails in many ways, and none of them may cost a score
        return f"the compiler failed: {type(error).__name__}: {error}"
    tolerance = _TOLERANCE[model.dtype]
    for ours, theirs in zip(actual, expected, strict=True):
        difference = float((ours - theirs).norm() / theirs.norm())
        if not difference <= tolerance:
            return f"compiled and plain scores differ by {difference:.2g} of their norm"
    return None


def _scores(model: EnsembleModel, lengths: tuple[int, ...]) -> Tensor:
    vocab = model.vocab_size
    scores: Tensor = model([[[(7 * step + 11 * length) % vocab for step in range(length)] for length in lengths]])
    return scores
