"""The shared transformer in memory, with the architecture's own head, and proof that the head is understood.

    folder  --load_backbone-->  Backbone

Knows nothing of members, packed batches or bundles.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from quorum_model.errors import Unsupported
from quorum_model.heads import Head, head_of
from quorum_model.packing import Pooling, packing_of, pool

# What Transformers raises for a folder that is no such model: by type, config, shapes or a broken file.
_LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Backbone:
    """A loaded backbone.

    model: the sequence-classification model; module names and adapters refer to it.
    body: its base model, which gives hidden states. body_prefix: the body's name inside `model`.
    head: the architecture's head (shares modules with `model`).
    new_parameters: head parameters that the checkpoint did not hold, and that were drawn at random.
    position_offset: position id of a sequence's first token.
    """

    model: Any
    body: Any
    body_prefix: str
    head: Head
    new_parameters: frozenset[str]
    position_offset: int

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only those before it, so that the last one is the one that has seen all."""
        return _is_causal(self.body)

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that learned position embeddings allow; None where positions are computed."""
        tables = [
            module.num_embeddings
            for name, module in self.body.named_modules()
            if isinstance(module, nn.Embedding) and ("position" in name.rpartition(".")[2] or name.endswith("wpe"))
        ]
        return min(tables) - self.position_offset if tables else None

    @property
    def vocab_size(self) -> int:
        """Number of token ids that the embedding knows."""
        return int(self.body.get_input_embeddings().weight.shape[0])


def is_causal(folder: Path) -> bool:
    """Whether the architecture in `folder` is causal; loads no weights.

    Raises:
        Unsupported: not a text model with a sequence-classification class.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except _LOADING_ERRORS as error:
        raise Unsupported(f"{folder} cannot be loaded for sequence classification: {error}") from error
    return _is_causal(model)


def _is_causal(model: nn.Module) -> bool:
    return any(getattr(module, "is_causal", False) is True for module in model.modules())


def load_backbone(folder: Path, *, dtype: torch.dtype = torch.float32, quantization: Any = None) -> Backbone:
    """Load the sequence-classification model of a backbone with one label, in eval mode, every parameter frozen.

    Args:
        folder: of the model.
        dtype: of the weights.
        quantization: a quantization config of Transformers, for training on a backbone that is too large otherwise.

    Raises:
        Unsupported: no such class for the architecture, or a head that is not understood.
    """
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # new head weights are expected here and reported by `new_parameters`
    transformers_logging.disable_progress_bar()
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=1,
            dtype=dtype,
            quantization_config=quantization,
            device_map=None if quantization is None else {"": torch.cuda.current_device()},
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except _LOADING_ERRORS as error:
        raise Unsupported(f"{folder} cannot be loaded for sequence classification: {error}") from error
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
    return wrap_backbone(model, frozenset(info["missing_keys"]))


def wrap_backbone(model: Any, new_parameters: frozenset[str] = frozenset()) -> Backbone:
    """A `Backbone` of a sequence-classification model that is already in memory."""
    prefix = model.base_model_prefix
    body = getattr(model, prefix)
    head = head_of(model, prefix)
    missing_body = [name for name in new_parameters if name.startswith(f"{prefix}.") and ".pooler." not in name]
    if missing_body:
        raise Unsupported(f"the checkpoint lacks backbone weights: {missing_body[0]}")
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    body.config.use_cache = False
    _check_head(model, body, head)
    if getattr(body, "pooler", None) is not None:
        body.pooler = None  # part of the head now; the body need not run it
    return Backbone(model, body, prefix, head, new_parameters, _position_offset(body))


def _check_head(model: Any, body: Any, head: Head) -> None:
    """The head, taken apart, must give what the whole model gives: families that look alike may compute otherwise."""
    pad = getattr(model.config, "pad_token_id", None)  # Transformers would pool before a closing pad token
    probe = [token for token in (7, 5, 11, 5, 7, 9, 13) if token != pad]
    ids = torch.tensor([probe], device=next(model.parameters()).device)
    pooling = default_pooling(model)
    try:
        with torch.no_grad():
            whole = model(input_ids=ids).logits.flatten()
            hidden = body(input_ids=ids).last_hidden_state
            taken_apart = head(pool(hidden, packing_of([[ids.shape[1]]]), pooling)[0].to(whole.dtype))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise Unsupported(f"{type(model).__name__}: its head cannot be run on a pooled vector: {error}") from error
    if taken_apart.shape != whole.shape or not torch.allclose(taken_apart, whole, rtol=1e-2, atol=1e-3):
        raise Unsupported(f"{type(model).__name__} computes its score in a way that this version does not know")


def default_pooling(model: Any) -> Pooling:
    """The pooling that the architecture's own sequence-classification class has."""
    if hasattr(model, "score"):
        return "last"
    return "mean" if getattr(model.config, "classifier_pooling", "cls") == "mean" else "first"


def _position_offset(body: nn.Module) -> int:
    """RoBERTa and its kin start positions at padding_idx + 1; everyone else at 0."""
    for module in body.modules():
        padding_idx = getattr(module, "padding_idx", None)
        if hasattr(module, "create_position_ids_from_input_ids") and isinstance(padding_idx, int):
            return padding_idx + 1
    return 0
