"""Backbones for benchmarks: the ones that training knows, and random ones of a given shape, where none can be had.

"package:…", folder, hub id, "random:LxDxFxHxG"  --find_backbone-->  folder
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from quorum_client.errors import InvalidRequest
from quorum_model.benchmark.quiet import quiet_transformers
from quorum_model.sources import resolve_backbone

_RANDOM = re.compile(r"random:(\d+)x(\d+)x(\d+)x(\d+)x(\d+)", re.ASCII)
_VOCAB_SIZE = 32_000


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Of a random causal backbone: a Llama with a score head.

    Raises:
        InvalidRequest: heads that do not divide what they have to.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    key_heads: int

    def __post_init__(self) -> None:
        if not all((self.layers, self.hidden, self.ffn, self.heads, self.key_heads)):
            raise InvalidRequest("a backbone's layers, sizes and heads are 1 or more")
        if self.hidden % (2 * self.heads) or self.heads % self.key_heads:
            raise InvalidRequest(
                f"{self.heads} heads must split a hidden size of {self.hidden} into even parts, and {self.key_heads} "
                "key heads must divide them"
            )

    def save(self, folder: Path, *, max_length: int) -> Path:
        """Draw its weights and write them with config.json, as a hub's folder; it has no tokenizer.

        Drawn on a CUDA device where there is one: a billion numbers take a CPU half a minute. Others than a CPU draws.
        """
        torch.manual_seed(0)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = LlamaConfig(
            vocab_size=_VOCAB_SIZE,
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            max_position_embeddings=max_length,
            num_labels=1,
        )
        with quiet_transformers(), device:
            AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        return folder


def find_backbone(source: str, work: Path, *, max_length: int) -> Path:
    """A folder with the backbone.

    Args:
        source: as `resolve_backbone` takes it, or `random:` and a Llama's layers, hidden size, inner size, heads and
            key heads, joined by x.
        work: where a random one is written.
        max_length: longest sequence that a random one will see.

    Raises:
        InvalidRequest: a shape that no Llama has.
        BackboneNotFound: see `resolve_backbone`.
    """
    if not source.startswith("random:"):
        return resolve_backbone(source)
    shape = _RANDOM.fullmatch(source)
    if shape is None:
        raise InvalidRequest(f"{source}: a random backbone is random:LAYERSxHIDDENxFFNxHEADSxKEYHEADS")
    return LlamaShape(*map(int, shape.groups())).save(work / "random", max_length=max_length)
