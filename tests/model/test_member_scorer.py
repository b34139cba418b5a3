"""Loading an ensemble: what is refused before it can give a wrong number, and how passes are planned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from quorum_client.errors import RequestTooLarge
from quorum_model import loading
from quorum_model.bundle.manifest import BackboneRef
from quorum_model.bundle.read import Bundle, read_bundle
from quorum_model.bundle.write import write_bundle
from quorum_model.errors import (
    BackboneMismatch,
    BackboneNotFound,
    BundleCorrupt,
    HeadMissing,
    SelfTestFailed,
    Unsupported,
)
from quorum_model.loading import load_member_scorer
from quorum_model.member_scorer import MemberScorer
from tests.reference.tiny_models import random_sequences
from tests.server.tiny_bundle import make_bert_bundle, make_llama_bundle


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


def test_golden_tokens_beyond_the_vocabulary_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    def spoil(root: Path) -> None:
        golden = json.loads((root / "golden.json").read_text())
        golden[0]["token_ids"][1] = 999_999
        (root / "golden.json").write_text(json.dumps(golden))

    with pytest.raises(BundleCorrupt, match="beyond the backbone's 97"):
        load_member_scorer(rewrite(bundle, tmp_path / "beyond", spoil))


@pytest.mark.parametrize("content", ["{not json", "[]", '{"r": 4}'])
def test_an_adapter_config_that_is_none_is_refused(bundle: Bundle, tmp_path: Path, content: str) -> None:
    def spoil(root: Path) -> None:
        (root / "members" / "m01" / "adapter_config.json").write_text(content)

    with pytest.raises(BundleCorrupt, match=r"m01: adapter_config\.json"):
        load_member_scorer(rewrite(bundle, tmp_path / "config", spoil))


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


@pytest.fixture(scope="module")
def causal_scorers(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemberScorer, MemberScorer]:
    """With and without sharing."""
    bundle = make_llama_bundle(tmp_path_factory.mktemp("causal") / "tiny")
    return load_member_scorer(bundle), load_member_scorer(bundle, share_prefixes=False)


def candidates() -> list[list[int]]:
    prompts = random_sequences([30, 25], seed=5)
    return [prompts[index % 2] + answer for index, answer in enumerate(random_sequences([6, 9, 3, 12, 1, 7], seed=6))]


def test_shared_prefixes_change_what_is_computed_and_not_the_scores(
    causal_scorers: tuple[MemberScorer, MemberScorer],
) -> None:
    sharing, plain = causal_scorers
    shared, whole = sharing.score(candidates()), plain.score(candidates())
    np.testing.assert_allclose(shared.raw, whole.raw, rtol=0, atol=1e-5 * float(whole.raw.std()))  # fp32
    assert whole.computed_tokens == sum(map(len, candidates()))
    distinct = {tuple(ids[:end]) for ids in candidates() for end in range(1, len(ids) + 1)}
    assert shared.computed_tokens == len(distinct)  # answers of one prompt differ from their first token on


def out_of_memory_beyond(monkeypatch: pytest.MonkeyPatch, scorer: MemberScorer, most: int) -> list[int]:
    """A device that holds so many tokens; what it was given, pass by pass."""
    seen: list[int] = []
    run = scorer._model.__call__

    def model(rows: Any) -> torch.Tensor:
        seen.append(sum(map(len, rows[0])))
        if seen[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(rows)

    monkeypatch.setattr(scorer, "_model", model)
    return seen


def test_out_of_memory_halves_the_passes_and_goes_on(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = random_sequences([7, 30, 2, 15, 15, 1, 30, 28], seed=3)
    expected = load_member_scorer(bundle).score(sequences)
    scorer = load_member_scorer(bundle)
    seen = out_of_memory_beyond(monkeypatch, scorer, 40)
    scored: list[int] = []
    actual = scorer.score(sequences, scored.append)
    np.testing.assert_allclose(actual.raw, expected.raw, rtol=0, atol=1e-5)
    assert actual.computed_tokens == sum(map(len, sequences)) == sum(each for each in seen if each <= 40)
    assert sum(scored) == len(sequences)
    seen.clear()
    scorer.score(sequences)
    assert max(seen) <= 40  # it has learned


def test_a_text_that_does_not_fit_alone_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = load_member_scorer(bundle)
    out_of_memory_beyond(monkeypatch, scorer, 10)
    with pytest.raises(RequestTooLarge, match="a text of 30 tokens"):
        scorer.score(random_sequences([5, 30], seed=3))


def test_other_failures_of_a_pass_are_not_taken_for_memory(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = load_member_scorer(bundle)

    def broken(_rows: Any) -> torch.Tensor:
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(scorer, "_model", broken)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        scorer.score([[1, 2]])


def test_the_self_test_scores_alone_what_it_scores_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a store, a long golden text alone would go on from what the batch before it left there."""
    seen: list[bool] = []
    test = loading._self_test

    def watched(scorer: MemberScorer, golden: Any) -> None:
        seen.append(scorer._store is None)
        test(scorer, golden)

    monkeypatch.setattr(loading, "_self_test", watched)
    scorer = load_member_scorer(make_llama_bundle(tmp_path / "tiny"))
    assert seen == [True]
    assert scorer._store is not None


def test_members_that_have_become_one_do_not_pass(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in low precision, where the golden scores' tolerance is wider than the members are apart."""
    read = loading.read_member_adapters
    monkeypatch.setattr(loading, "read_member_adapters", lambda one: [read(one)[0]] * len(one.manifest.members))
    monkeypatch.setattr(loading, "_SELF_TEST_TOLERANCE", {torch.float32: 1e6})
    with pytest.raises(SelfTestFailed, match="m00 and m01 score alike"):
        load_member_scorer(bundle)


def test_what_the_caller_computes_in_changes_no_score(bundle: Bundle) -> None:
    scorer = load_member_scorer(bundle, dtype="float32", token_budget=64)
    sequences = random_sequences([5, 9, 3])
    expected = scorer.score(sequences).raw
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(scorer.score(sequences).raw, expected)
