"""What is no reward model is refused by name and reason, and nothing is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from quorum_client.errors import QuorumError
from quorum_model.errors import BackboneNotFound, BundleError, HeadMissing, Unsupported
from quorum_trainer.data import DataError
from quorum_trainer.importing.build import ImportOptions, import_models
from quorum_trainer.importing.plan import InvalidOption
from tests.trainer.importing.saved_models import architecture_of, save_adapter, save_model, tokenizer_for

OPTIONS = ImportOptions(name="toy")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def two_labels(folder: Path) -> None:
    architecture = architecture_of("bert")
    config = architecture.config(**architecture.options, num_labels=2)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


def generation_model(folder: Path) -> None:
    architecture = architecture_of("llama")
    transformers.LlamaForCausalLM(architecture.config(**architecture.options)).save_pretrained(folder)


def body_alone(folder: Path) -> None:
    architecture = architecture_of("bert")
    transformers.BertModel(architecture.config(**architecture.options)).save_pretrained(folder)


def without_tensor(name: str, part: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save_model(name, folder)
        path = folder / "model.safetensors"
        tensors = {key: value for key, value in load_file(path).items() if not key.startswith(part)}
        save_file(tensors, path, metadata={"format": "pt"})

    return make


def pickled(folder: Path) -> None:
    save_model("bert", folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def changed(name: str, **changes: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save_model(name, folder)
        change_config(folder, **changes)

    return make


def without_tokenizer(folder: Path) -> None:
    save_model("bert", folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def not_a_number(folder: Path) -> None:
    save_model("llama", folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][0] = float("nan")  # <unk>: what the tiny tokenizer knows not
    save_file(tensors, path, metadata={"format": "pt"})


def encoder_decoder(folder: Path) -> None:
    config = transformers.BartConfig(
        vocab_size=97, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_labels=1,
    )  # fmt: skip
    transformers.BartForSequenceClassification(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (two_labels, Unsupported, "num_labels is 2: a reward model has one output"),
        (generation_model, Unsupported, "LlamaForCausalLM has no reward head"),
        (body_alone, Unsupported, "BertModel has no reward head"),
        (without_tensor("llama", "score."), HeadMissing, r"no score\.weight: its head was never trained"),
        (without_tensor("bert", "classifier."), HeadMissing, r"no classifier\.weight"),
        (without_tensor("bert", "bert.pooler."), HeadMissing, r"no bert\.pooler\.dense\.weight"),
        (without_tensor("llama", "model.layers.1."), Unsupported, r"lacks backbone weights: model\.layers\.1"),
        (pickled, Unsupported, r"no model\*\.safetensors.*Pickled.*save_pretrained"),
        (changed("bert", model_type="nobodys"), Unsupported, "nobodys"),
        (
            changed("bert", model_type="nobodys", auto_map={"AutoConfig": "evil.EvilConfig"}),
            Unsupported,
            "code of a model's own is never run",
        ),
        (
            changed("llama", architectures=["GatedForSequenceClassification"]),
            Unsupported,
            "saved as GatedForSequenceClassification, which Transformers does not have",
        ),
        (changed("llama", quantization_config={"quant_method": "bitsandbytes"}), Unsupported, "quantised"),
        (without_tokenizer, BackboneNotFound, "tokenizer"),
        (not_a_number, Unsupported, "scores an ordinary text nan"),
        (encoder_decoder, Unsupported, "BartForSequenceClassification"),
        (
            lambda folder: folder.mkdir(),
            Unsupported,
            r"neither a Transformers model \(config\.json\) nor a PEFT adapter",
        ),
        (lambda folder: None, BackboneNotFound, "no such folder"),
        (lambda folder: folder.write_text("a file") and None, BackboneNotFound, "no such folder"),
    ],
)
def test_refused_with_the_reason(
    make: Callable[[Path], None], error: type[QuorumError], message: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    folder = tmp_path / "model"
    make(folder)
    if folder.is_dir() and make is not without_tokenizer and not (folder / "tokenizer.json").exists():
        tokenizer_for("bert").save_pretrained(folder) if any(folder.iterdir()) else None
    with pytest.raises(error, match=message):
        import_models([str(folder)], tmp_path / "out" / "bundle", OPTIONS)
    assert list((tmp_path / "out").iterdir()) == []


def test_own_code_is_never_run(tmp_path: Path) -> None:
    folder = save_model("bert", tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    change_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig"})
    with pytest.raises(Unsupported, match="never run"):
        import_models([str(folder)], tmp_path / "bundle", OPTIONS)
    assert not (tmp_path / "ran").exists()


def test_a_hub_that_is_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(BackboneNotFound, match="nobody/nothing: not a folder, and not to be had from the hub"):
        import_models(["nobody/nothing"], tmp_path / "bundle", OPTIONS)


@pytest.mark.parametrize(
    ("names", "message"),
    [(("bert", "roberta"), "its architecture is Roberta"), (("llama", "llama-own-pad"), "its prompt format")],
)
def test_members_of_one_ensemble_are_alike(names: tuple[str, str], message: str, tmp_path: Path) -> None:
    folders = [str(save_model(name, tmp_path / name)) for name in names]
    with pytest.raises(Unsupported, match=message):
        import_models(folders, tmp_path / "bundle", OPTIONS)


def test_sources_that_do_not_belong_together(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    cases: list[tuple[list[Path], ImportOptions, str]] = [
        ([base, adapter], OPTIONS, "adapter is an adapter, others are whole models"),
        ([base, base], OPTIONS, "given more than once"),
        ([base], replace(OPTIONS, base=str(base)), "--base is for adapters"),
    ]
    for sources, options, message in cases:
        with pytest.raises(InvalidOption, match=message):
            import_models([str(source) for source in sources], tmp_path / "bundle", options)


def test_an_adapter_with_pickled_weights(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(Unsupported, match=r"no adapter_model\.safetensors\. Pickled"):
        import_models([str(adapter)], tmp_path / "bundle", OPTIONS)


def test_small_files_are_read_before_large_ones(tmp_path: Path) -> None:
    missing = str(tmp_path / "no model")
    with pytest.raises(DataError, match=r"--template: none\.jinja cannot be read"):
        import_models([missing], tmp_path / "bundle", replace(OPTIONS, template=tmp_path / "none.jinja"))
    bad = tmp_path / "pairs.jsonl"
    bad.write_text("{}\n")
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 1"):
        import_models([missing], tmp_path / "bundle", replace(OPTIONS, pairs=bad))


def test_an_existing_target_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("keep")
    with pytest.raises(BundleError, match="exists already"):
        import_models([str(tmp_path / "no model")], tmp_path / "bundle", OPTIONS)
    assert (tmp_path / "bundle" / "mine").read_text() == "keep"


def test_pooling_that_makes_no_sense(tmp_path: Path) -> None:
    folder = save_model("llama", tmp_path / "model")
    with pytest.raises(Unsupported, match="first token of a causal backbone"):
        import_models([str(folder)], tmp_path / "bundle", replace(OPTIONS, pooling="first"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
