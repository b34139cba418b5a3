"""Tiny random backbones of every architecture under test, and members with random non-zero updates."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from quorum_model.adapters import AdapterState, LoraWeights
from quorum_model.backbone import Backbone, wrap_backbone
from quorum_model.folded import features_of, is_linear

VOCAB = 97
_ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
}
# Grouped queries (2 key heads for 4 query heads), and pad token equal to eos, as with Llama and Qwen reward models.
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "pad_token_id": 2, "eos_token_id": 2, "bos_token_id": 1}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An architecture under test. packs: whether it can be packed exactly."""

    name: str
    config: type
    options: dict[str, Any]
    pooling: str
    packs: bool = True


ARCHITECTURES = [
    Architecture("bert", transformers.BertConfig, _ENCODER, "first"),
    Architecture("bert-mean", transformers.BertConfig, _ENCODER, "mean"),
    Architecture("roberta", transformers.RobertaConfig, {**_ENCODER, "pad_token_id": 1}, "first"),
    Architecture(
        "modernbert",
        transformers.ModernBertConfig,
        {
            **_ENCODER,
            "local_attention": 16,
            "global_attn_every_n_layers": 2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        "first",
    ),
    Architecture(
        "distilbert",
        transformers.DistilBertConfig,
        {"vocab_size": VOCAB, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 80},
        "first",
    ),
    Architecture("electra", transformers.ElectraConfig, {**_ENCODER, "embedding_size": 32}, "first"),
    Architecture("llama", transformers.LlamaConfig, _DECODER, "last"),
    Architecture("qwen3", transformers.Qwen3Config, {**_DECODER, "head_dim": 8}, "last"),
    Architecture("mistral", transformers.MistralConfig, {**_DECODER, "sliding_window": 8}, "last"),
    Architecture(
        "gemma2",
        transformers.Gemma2Config,
        {**_DECODER, "head_dim": 8, "sliding_window": 8, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
        "last",
    ),
    Architecture(
        "gemma3",
        transformers.Gemma3TextConfig,
        {**_DECODER, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
        "last",
    ),
    # Its sliding window is in the mask alone, where packed attention cannot see it.
    Architecture(
        "phimoe-window",
        transformers.PhimoeConfig,
        {**_DECODER, "sliding_window": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
        "last",
        packs=False,
    ),
    Architecture(
        "gpt2",
        transformers.GPT2Config,
        {
            "vocab_size": VOCAB,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 80,
            "pad_token_id": 2,
            "bos_token_id": 2,
            "eos_token_id": 2,
        },
        "last",
    ),
    Architecture(
        "deberta-v3",
        transformers.DebertaV2Config,
        {
            **_ENCODER,
            "relative_attention": True,
            "position_buckets": 8,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "type_vocab_size": 0,
        },
        "first",
        packs=False,
    ),
]


def make_model(architecture: Architecture, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A sequence-classification model with weights large enough that tokens and positions matter."""
    torch.manual_seed(seed)
    config = architecture.config(**architecture.options, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").to(dtype).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.25)
    return model


def make_backbone(architecture: Architecture, dtype: torch.dtype = torch.float32, seed: int = 0) -> Backbone:
    """`make_model`, wrapped."""
    return wrap_backbone(make_model(architecture, dtype, seed))


def linear_names(backbone: Backbone) -> list[str]:
    """Every linear layer of the body, by its name in the sequence-classification model."""
    return [f"{backbone.body_prefix}.{name}" for name, module in backbone.body.named_modules() if is_linear(module)]


def random_member(
    backbone: Backbone, *, rank: int, seed: int, names: list[str] | None = None, scaling: float = 2.0
) -> AdapterState:
    """An adapter with random non-zero A and B on every named layer, and a random head."""
    generator = torch.Generator().manual_seed(seed)
    modules = dict(backbone.model.named_modules())
    dtype = backbone.body.dtype

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) * 0.25

    lora = {}
    for name in names if names is not None else linear_names(backbone):
        d_in, d_out = features_of(modules[name])
        lora[name] = LoraWeights(draw(rank, d_in), draw(d_out, rank), scaling)
    head = {
        backbone.head.public_name(name): draw(*parameter.shape) for name, parameter in backbone.head.named_parameters()
    }
    return AdapterState(lora, head)


def random_sequences(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Token ids that never hold a pad or eos id inside (HF would pool at the wrong place)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]
