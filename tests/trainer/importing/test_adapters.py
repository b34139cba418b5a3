"""PEFT adapters, imported: members score as PEFT scores them, each alone; what is not exact is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load_file, save_file

from quorum_client.errors import QuorumError
from quorum_model.errors import BackboneNotFound, HeadMissing, Unsupported
from quorum_trainer.importing.build import ImportOptions, import_models
from quorum_trainer.importing.plan import InvalidOption
from tests.reference.tiny_models import make_model
from tests.trainer.importing.saved_models import (
    PAIRS,
    architecture_of,
    own_ids,
    save_adapter,
    save_model,
    served_scores,
    tokenizer_for,
    transformers_scores,
)

OPTIONS = ImportOptions(name="toy")
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}  # fp32: the folded update against PEFT's, packed against eager attention
DIFFERENT: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": "all-linear", "r": 2, "use_rslora": True},
        {"target_modules": ["gate_proj", "down_proj"], "r": 6, "rank_pattern": {"down_proj": 3},
         "layers_to_transform": [1, 2]},
    ],
    # No pad token in the base's config: one sequence is then scored at its last token, EOS or not.
    "llama-no-pad": [{"target_modules": ["q_proj"]}],
    # "dense" is also the pooler: a LoRA update of the head.
    "bert": [
        {"target_modules": ["query", "dense"]},
        {"target_modules": ["value"], "modules_to_save": ["classifier", "pooler"]},
        {"target_modules": "all-linear", "alpha_pattern": {"key": 3}},
    ],
    "roberta": [{"target_modules": ["query", "dense"]}, {"target_modules": ["key"], "r": 3}],
    "modernbert": [{"target_modules": ["Wqkv", "Wo"], "modules_to_save": ["head", "classifier"]}],
}  # fmt: skip


def save_base(name: str, folder: Path) -> Path:
    """A body without a reward head, as a hub has it."""
    make_model(architecture_of(name)).base_model.save_pretrained(folder)
    tokenizer_for(name).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", DIFFERENT)
def test_adapters_score_as_peft(name: str, tmp_path: Path) -> None:
    base = save_base(name, tmp_path / "base")
    folders = [
        save_adapter(base, tmp_path / f"adapter{seed}", seed=seed, **options)
        for seed, options in enumerate(DIFFERENT[name])
    ]
    bundle = import_models([str(folder) for folder in folders], tmp_path / "bundle", OPTIONS).bundle
    assert bundle.manifest.kind == "lora"
    assert bundle.manifest.backbone.source == str(base)
    assert not any("backbone" in file for file in bundle.manifest.files)  # referred to, not copied
    sequences = [own_ids(base, *pair) for pair in PAIRS]
    expected = [transformers_scores(base, sequences, folder) for folder in folders]
    np.testing.assert_allclose(np.array(served_scores(bundle.path)).T, expected, **TOLERANCE)


@pytest.mark.parametrize(("name", "index"), [("bert", 0), ("bert", 2), ("llama", 1), ("llama", 2)])
def test_members_load_in_peft_as_they_lie_in_the_bundle(name: str, index: int, tmp_path: Path) -> None:
    base = save_base(name, tmp_path / "base")
    folder = save_adapter(base, tmp_path / "adapter", **DIFFERENT[name][index])
    bundle = import_models([str(folder)], tmp_path / "bundle", OPTIONS).bundle
    sequences = [own_ids(base, *pair) for pair in PAIRS]
    again = transformers_scores(base, sequences, bundle.path / "members" / "m00")
    np.testing.assert_allclose(again, transformers_scores(base, sequences, folder), **TOLERANCE)


def test_an_adapter_on_a_reward_model_may_keep_its_head(tmp_path: Path) -> None:
    base = save_model("llama", tmp_path / "base")
    folder = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], task_type=None)
    assert not any("score" in key for key in load_file(folder / "adapter_model.safetensors"))
    bundle = import_models([str(folder)], tmp_path / "bundle", OPTIONS).bundle
    expected = transformers_scores(base, [own_ids(base, *pair) for pair in PAIRS], folder)
    np.testing.assert_allclose(np.array(served_scores(bundle.path))[:, 0], expected, **TOLERANCE)


def test_half_precision_adapters_are_kept(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    folder = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    path = folder / "adapter_model.safetensors"
    save_file(
        {key: value.to(torch.bfloat16) for key, value in load_file(path).items()}, path, metadata={"format": "pt"}
    )
    bundle = import_models([str(folder)], tmp_path / "bundle", OPTIONS).bundle
    written = load_file(bundle.path / "members" / "m00" / "adapter_model.safetensors")
    assert {value.dtype for key, value in written.items() if "lora" in key} == {torch.bfloat16}
    expected = transformers_scores(base, [own_ids(base, *pair) for pair in PAIRS], folder)
    np.testing.assert_allclose(np.array(served_scores(bundle.path))[:, 0], expected, **TOLERANCE)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_base_is_the_adapters_own_or_the_one_given(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    folders = [save_adapter(base, tmp_path / f"adapter{seed}", seed=seed, target_modules=["q_proj"]) for seed in (0, 1)]
    sources = [str(folder) for folder in folders]
    before = import_models(sources, tmp_path / "before", OPTIONS).bundle
    change_config(folders[1], base_model_name_or_path=str(tmp_path / "moved"))
    with pytest.raises(
        InvalidOption, match=r"adapter1 on .*moved: the members of one ensemble share their base .*--base"
    ):
        import_models(sources, tmp_path / "bundle", OPTIONS)
    change_config(folders[0], base_model_name_or_path=str(tmp_path / "moved"))
    with pytest.raises(BackboneNotFound, match=r"moved.*--base"):
        import_models(sources, tmp_path / "bundle", OPTIONS)
    change_config(folders[0], base_model_name_or_path=None)
    with pytest.raises(InvalidOption, match=r"adapter0 does not name its base: give it by --base"):
        import_models(sources, tmp_path / "bundle", OPTIONS)
    given = import_models(sources, tmp_path / "bundle", replace(OPTIONS, base=str(base))).bundle
    assert given.manifest.backbone == before.manifest.backbone
    config = PeftConfig.from_pretrained(str(given.path / "members" / "m01"))
    assert config.base_model_name_or_path == str(base)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("llama", {"target_modules": ["q_proj"], "use_dora": True}, Unsupported, "use_dora"),
        ("llama", {"target_modules": ["q_proj", "embed_tokens"]}, Unsupported, "embed_tokens"),
        ("bert", {"target_modules": ["query"], "bias": "lora_only"}, Unsupported, "bias"),
        ("llama", {"target_modules": ["q_proj"], "task_type": None}, HeadMissing, r"no score\.weight"),
        # PEFT saves the classifier alone; the dense layer before it was drawn at random, and is lost.
        ("modernbert", {"target_modules": ["Wqkv"]}, HeadMissing, r"no head\.dense\.weight"),
        (
            "llama",
            {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]},
            Unsupported,
            "input_layernorm.weight was trained, but is no part of the head",
        ),
    ],
)
def test_what_would_not_be_exact_is_refused(
    name: str, options: dict[str, Any], error: type[QuorumError], message: str, tmp_path: Path
) -> None:
    base = save_base(name, tmp_path / "base")
    folder = save_adapter(base, tmp_path / "adapter", **options)
    with pytest.raises(error, match=message):
        import_models([str(folder)], tmp_path / "bundle", OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_tokenizer_that_is_not_the_bases_is_refused(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    folder = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    tokenizer = tokenizer_for("llama")
    tokenizer.save_pretrained(folder)
    import_models([str(folder)], tmp_path / "same", OPTIONS)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(Unsupported, match="another vocabulary"):
        import_models([str(folder)], tmp_path / "bundle", OPTIONS)


def test_the_adapters_own_chat_template_is_kept(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    folder = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    tokenizer = tokenizer_for("llama")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} ! {% endfor %}"
    tokenizer.save_pretrained(folder)
    bundle = import_models([str(folder)], tmp_path / "bundle", OPTIONS).bundle
    assert bundle.manifest.prompt_format.template == tokenizer.chat_template
    expected = transformers_scores(base, [own_ids(folder, *pair) for pair in PAIRS], folder)
    np.testing.assert_allclose(np.array(served_scores(bundle.path))[:, 0], expected, **TOLERANCE)
    other = save_adapter(base, tmp_path / "other", seed=1, target_modules=["q_proj"])
    with pytest.raises(Unsupported, match=r"other: its prompt format .* is not that of .*adapter"):
        import_models([str(folder), str(other)], tmp_path / "both", OPTIONS)


def test_an_adapter_with_two_labels_or_for_another_base_is_refused(tmp_path: Path) -> None:
    base = save_base("llama", tmp_path / "base")
    folder = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.score.weight"
    save_file(tensors | {name: torch.cat([tensors[name]] * 2)}, path, metadata={"format": "pt"})
    with pytest.raises(Unsupported, match=r"score\.weight has the shape \(2, 32\)"):
        import_models([str(folder)], tmp_path / "bundle", OPTIONS)
    lora = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(tensors | {lora: tensors[lora][:, :16].contiguous()}, path, metadata={"format": "pt"})
    with pytest.raises(Unsupported, match="PEFT cannot put it on its base"):
        import_models([str(folder)], tmp_path / "bundle", OPTIONS)
