"""Whether a backbone can be packed exactly: tried when a model is built, and not believed.

    EnsembleModel with the plain attention  --why_not_packed-->  None, or the reason

A backbone may ignore the attention it is given without an error, or tell its sliding window to its mask alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from quorum_model.attention import ATTENTION_NAME
from quorum_model.packing import pack

if TYPE_CHECKING:
    from quorum_model.model import EnsembleModel

# Packed and plain hidden states of the same tokens may differ by rounding; sequences that leak into each other differ
# by the order of the activations themselves. Relative to their norm, per dtype (eager softmax is fp32 even in fp64):
_PACKING_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


def why_not_packed(model: EnsembleModel) -> str | None:
    """Set the packed attention, and say why it cannot be used, or None.

    Args:
        model: complete but for its attention, which is the plain one.
    """
    body = model.backbone.body
    if not type(body)._can_set_attn_implementation():
        return f"{type(body).__name__} has attention code of its own"
    row = model.probe_row()
    with torch.no_grad():
        plain = model.pooled_unpadded([row], range(model.num_adapters))
        model.backbone.model.set_attn_implementation(ATTENTION_NAME)
        try:
            packed = model.pooled_packed([row], model.num_adapters)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            return f"packed attention failed: {error}"
    difference = float((packed - plain).norm() / plain.norm())
    if not difference <= _PACKING_TOLERANCE[body.dtype]:  # NaN is no agreement either
        return f"packed and plain hidden states differ by {difference:.2g} of their norm"
    return _unseen_window(model)


def _unseen_window(model: EnsembleModel) -> str | None:
    """Short probes do not reach a sliding window: every layer that has one must have told its attention so.

    Some models put the window into the mask alone, which packed attention does not take.
    """
    config = model.backbone.body.config.get_text_config()
    batch = pack([model.probe_row()], position_offset=model.backbone.position_offset, device=model.device)
    with torch.no_grad():
        model.run_packed(batch)
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None)
    expected = config.num_hidden_layers if window else 0
    if types is not None:
        expected = sum(kind == "sliding_attention" for kind in types)
    if any(kind not in ("sliding_attention", "full_attention") for kind in types or ()):
        return f"it has layers of a kind that packed attention does not know: {sorted(set(types or ()))}"
    if batch.packing.num_windowed_calls != expected:
        return f"{expected} layers have a sliding window, {batch.packing.num_windowed_calls} told their attention so"
    return None
