"""A causal language model and its tokenizer, from a folder or a hub.

name  --load_causal-->  model, tokenizer
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quorum_trainer.config import ConfigError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_causal(name: str, *, revision: str | None, dtype: str, what: str) -> tuple[Any, Any]:
    """Model and tokenizer.

    Args:
        name: of a folder, or a hub id.
        revision: of a hub id.
        dtype: float32 or bfloat16.
        what: the config's name for it, for the error.

    Raises:
        ConfigError: it cannot be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=_DTYPES[dtype], trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{what}: {name} cannot be loaded: {str(error).partition(chr(10))[0]}") from error
    return model, tokenizer
