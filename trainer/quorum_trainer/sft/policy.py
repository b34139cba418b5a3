"""The causal model that a run starts from: one that is there, or a new one with a tokenizer made from the texts.

    SftConfig, texts  --load_policy-->  model, tokenizer with a chat template

Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quorum_trainer.causal import load_causal
from quorum_trainer.config import ConfigError
from quorum_trainer.sft.config import NewModel, SftConfig

_PAD, _BOS, _END = "<|pad|>", "<|begin|>", "<|end|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Of a new model: every turn ends with the token that ends an answer."""


def load_policy(config: SftConfig, texts: Iterable[str]) -> tuple[Any, Any]:
    """Model and tokenizer.

    Args:
        config: which model.
        texts: what a new tokenizer is made from.

    Raises:
        ConfigError: the model cannot be loaded, or its tokenizer has no chat template.
    """
    if config.new_model is not None:
        tokenizer = train_tokenizer(texts, config.new_model.vocab_size)
        return new_policy(config.new_model, tokenizer, config.seed), tokenizer
    assert config.model is not None
    model, tokenizer = load_causal(config.model, revision=config.revision, dtype=config.dtype, what="model")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE if tokenizer.bos_token and tokenizer.eos_token else None
    if tokenizer.chat_template is None:
        raise ConfigError(f"model: the tokenizer of {config.model} has no chat template")
    return model, tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE (every text can be said in it), with a token for each role and one that ends a turn."""
    tokenizer = Tokenizer(models.BPE())
    # Digits apart: a number that was never seen is then spelt as those that were.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[_PAD, _BOS, _END, *_ROLES],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_PAD, bos_token=_BOS, eos_token=_END)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_policy(shape: NewModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights (float32) for this tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
