"""Small bundles made in a moment: one without a model for fake engines, others with a tiny random BERT or Llama.

Both use a tokenizer with one token a character, so that token ids can be worked out by hand.
"""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from quorum_model.adapters import write_adapter
from quorum_model.bundle.golden import GoldenItem, write_golden
from quorum_model.bundle.manifest import (
    BackboneRef,
    Manifest,
    MemberCalibration,
    MemberEntry,
    PromptFormat,
    fingerprint_of,
)
from quorum_model.bundle.read import Bundle
from quorum_model.bundle.write import write_bundle
from quorum_model.model import EnsembleModel
from quorum_model.prompts import PLAIN_TEMPLATE
from quorum_model.sources import hash_tokenizer, hash_weights
from tests.reference.tiny_models import ARCHITECTURES, VOCAB, Architecture, make_backbone, make_model, random_member

CLS, SEP = 1, 2
# Ids 5 to 8 are left to tests that give token ids: see fake_engine.
_SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "<5>", "<6>", "<7>", "<8>"]
_CHARACTERS = string.ascii_letters + string.digits + " \n.,:;!?'\"()-+=/_<>#&*%@"
VOCABULARY = {token: index for index, token in enumerate([*_SPECIAL, *_CHARACTERS])}


def encode_by_hand(prompt: str, response: str) -> list[int]:
    """The ids that (prompt, response) should get: the plain format, one id a character, CLS and SEP around."""
    text = f"Human: {prompt}\n\nAssistant: {response}"
    return [CLS, *(VOCABULARY[character] for character in text), SEP]


def save_tokenizer(folder: Path) -> None:
    """A fast tokenizer of one token a character."""
    assert len(VOCABULARY) <= VOCAB
    vocabulary = VOCABULARY | {f"<{index}>": index for index in range(len(VOCABULARY), VOCAB)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )
    fast.save_pretrained(str(folder))


def _tokenizer_sha256() -> str:
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder))
        return hash_tokenizer(Path(folder))


def _manifest(members: list[MemberEntry], weights_sha256: str, **changes: Any) -> Manifest:
    prompt_format = PromptFormat(
        template=PLAIN_TEMPLATE, origin="plain", fingerprint=fingerprint_of(PLAIN_TEMPLATE, [CLS], [SEP])
    )
    values: dict[str, Any] = {
        "name": "tiny",
        "kind": "linear",
        "backbone": BackboneRef(
            source="bundle:backbone", weights_sha256=weights_sha256, tokenizer_sha256=_tokenizer_sha256()
        ),
        "pooling": "first",
        "max_length": 80,
        "bos_ids": [CLS],
        "eos_ids": [SEP],
        "prompt_format": prompt_format,
        "members": members,
        "pair_temperature": 1.5,
    }
    return Manifest(**(values | changes))


def make_fake_bundle(target: Path, num_members: int = 3, **changes: Any) -> Bundle:
    """A bundle for fake engines: tokenizer and calibration are real, the weights are not.

    Member k has calibration mean k and scale k + 1.
    """
    members = [
        MemberEntry(
            name=f"m{k:02d}",
            head="heads.safetensors",
            seed=k,
            calibration=MemberCalibration(mean=float(k), scale=float(k + 1)),
        )
        for k in range(num_members)
    ]

    def write_files(folder: Path) -> None:
        save_tokenizer(folder / "backbone")
        (folder / "backbone" / "config.json").write_text(json.dumps({"model_type": "bert"}))
        heads = {f"{member.name}.weight": np.zeros((1, 4), np.float32) for member in members}
        safetensors.numpy.save_file(heads, folder / "heads.safetensors")
        write_golden(folder, [GoldenItem(token_ids=[CLS, SEP], scores=[0.0] * num_members)])

    return write_bundle(target, _manifest(members, "0" * 64, **changes), write_files)


def make_bert_bundle(target: Path, num_members: int = 3, *, seed: int = 10, **changes: Any) -> Bundle:
    """A real `lora` bundle on a tiny random BERT, its members far apart; one backbone whatever the seed."""
    return _make_lora_bundle(target, ARCHITECTURES[0], num_members, seed, **changes)


def make_llama_bundle(target: Path, num_members: int = 3) -> Bundle:
    """The same on a tiny random Llama, which shares prefixes."""
    return _make_lora_bundle(target, next(a for a in ARCHITECTURES if a.name == "llama"), num_members, 10)


def _make_lora_bundle(target: Path, architecture: Architecture, num_members: int, seed: int, **changes: Any) -> Bundle:
    pooling = architecture.pooling
    backbone = make_backbone(architecture)
    states = [random_member(backbone, rank=2 + k, seed=seed + k) for k in range(num_members)]
    model = EnsembleModel(backbone, [state.lora for state in states], [state.head for state in states], pooling).eval()
    members = [
        MemberEntry(
            name=f"m{k:02d}",
            adapter=f"members/m{k:02d}",
            head=f"members/m{k:02d}/adapter_model.safetensors",
            seed=k,
            calibration=MemberCalibration(mean=0.1 * k, scale=1.0 + k),
        )
        for k in range(num_members)
    ]
    golden_ids = [encode_by_hand("Hi", "Hello"), encode_by_hand("What is 2+2?", "4")]

    def write_files(folder: Path) -> None:
        make_model(architecture).save_pretrained(str(folder / "backbone"))
        save_tokenizer(folder / "backbone")
        for k, (member, state) in enumerate(zip(members, states, strict=True)):
            write_adapter(
                folder / str(member.adapter),
                state,
                base_source="backbone",
                alpha=2.0 * (2 + k),  # random_member scales by 2
                head_modules=backbone.head.module_names,
            )
        with torch.inference_mode():
            raw = model([golden_ids]).float().numpy()
        write_golden(folder, [GoldenItem(token_ids=ids, scores=raw[:, b].tolist()) for b, ids in enumerate(golden_ids)])

    weights_folder = target.with_name(f"{target.name}-weights")
    make_model(architecture).save_pretrained(str(weights_folder))
    manifest = _manifest(members, hash_weights(weights_folder), kind="lora", **{"pooling": pooling, **changes})
    return write_bundle(target, manifest, write_files)
