"""Reward models as people have them, as Transformers and PEFT write them, and what they score there and in a bundle."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from quorum_client.types import ScoreItem, ScoreRequest
from quorum_model.bundle.read import read_bundle
from quorum_model.local import LocalScorer
from quorum_model.prompts import load_prompt_encoder
from tests.reference.tiny_models import ARCHITECTURES, Architecture, make_model
from tests.reference.tiny_tokenizers import bert_like, llama_like

PAIRS = [
    ("What is the capital of France?", "Paris."),
    ("how are you, world?", "fine, thanks! and how are you"),
    ("one two three", "four five six seven eight nine ten . , ? !"),
]
_NAMED = {architecture.name: architecture for architecture in ARCHITECTURES}


def architecture_of(name: str) -> Architecture:
    """One of the reference's, or a variant: gemma, modernbert pooling by mean, llama with a pad token of its own."""
    if name == "gemma":
        return Architecture(name, transformers.GemmaConfig, {**_NAMED["llama"].options, "head_dim": 8}, "last")
    if name == "modernbert-mean":
        base = _NAMED["modernbert"]
        return replace(base, options={**base.options, "classifier_pooling": "mean"}, pooling="mean")
    if name == "llama-own-pad":
        base = _NAMED["llama"]
        return replace(base, options={**base.options, "pad_token_id": 0})
    if name == "llama-no-pad":
        base = _NAMED["llama"]
        return replace(base, options={**base.options, "pad_token_id": None})
    return _NAMED[name]


def tokenizer_for(name: str, *, chat: bool = True) -> Any:
    """A tokenizer whose special ids are those of the architecture's config."""
    if architecture_of(name).pooling != "last":
        return bert_like(first=("[CLS]", "[PAD]", "[SEP]")) if name == "roberta" else bert_like()
    return llama_like(chat=chat)


def save_model(
    name: str, folder: Path, *, seed: int = 0, chat: bool = True, dtype: torch.dtype = torch.float32
) -> Path:
    """A reward model with random weights and biases, head included."""
    model = make_model(architecture_of(name), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.25
    model.to(dtype).save_pretrained(folder)
    tokenizer_for(name, chat=chat).save_pretrained(folder)
    return folder


def save_adapter(base: Path, folder: Path, *, seed: int = 0, **options: Any) -> Path:
    """A PEFT adapter as after training, saved by PEFT: random B, random saved head."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(
            AutoModelForSequenceClassification.from_pretrained(base, num_labels=1),
            LoraConfig(**{"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, **options}),
        )
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.25
        model.save_pretrained(str(folder))
    return folder


def own_ids(folder: Path, prompt: str, response: str, ending: str = "") -> list[int]:
    """What the saved tokenizer makes of a pair, by Transformers' own calls."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        ids: list[int] = tokenizer(prompt + response + ending)["input_ids"]
        return ids
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    rendered: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    return rendered


def transformers_scores(folder: Path, sequences: Sequence[Sequence[int]], adapter: Path | None = None) -> list[float]:
    """Logits by Transformers (and PEFT) itself: one unpadded sequence at a time, with the config as it was saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=torch.float32, attn_implementation="eager"
        )
        if adapter is not None:
            model = PeftModel.from_pretrained(copy.deepcopy(model), str(adapter))
    model.eval()
    with torch.no_grad():
        return [float(model(input_ids=torch.tensor([list(ids)])).logits) for ids in sequences]


def served_scores(bundle: Path) -> list[list[float]]:
    """Members' calibrated scores of `PAIRS` by the bundle, (pairs, K); loading it runs every check."""
    items = [ScoreItem(prompt=prompt, response=response) for prompt, response in PAIRS]
    results = LocalScorer.open(str(bundle)).score(ScoreRequest(inputs=items, normalize=True)).results
    return [list(result.members or []) for result in results]


def served_ids(bundle: Path, prompt: str, response: str) -> list[int]:
    """Token ids of a pair in the bundle's prompt format."""
    return load_prompt_encoder(read_bundle(bundle)).encode_pair(prompt, response).ids
