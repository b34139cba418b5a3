"""A tiny random backbone on disk, without a head, and a tokenizer that fits it."""

from __future__ import annotations

from pathlib import Path

from tests.reference.tiny_models import ARCHITECTURES, make_model
from tests.reference.tiny_tokenizers import bert_like, llama_like


def save_tiny_backbone(name: str, folder: Path) -> Path:
    """As a hub's folder has it."""
    architecture = next(own for own in ARCHITECTURES if own.name == name)
    make_model(architecture).base_model.save_pretrained(folder)
    (llama_like() if name == "llama" else bert_like()).save_pretrained(folder)
    return folder
