"""Ensembles on one backbone share its memory, and score as if they did not."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from quorum_model.bundle.read import Bundle
from quorum_model.member_scorer import MemberScorer, load_member_scorer, make_sharing_loader
from tests.server.tiny_bundle import encode_by_hand, make_bert_bundle

SEQUENCES = [encode_by_hand("Hi", text) for text in ("a", "Hello there", "What?", "no " * 10)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bert_bundle(folder / f"b{seed}", num_members=2 + seed // 10, seed=seed) for seed in (10, 20)]


def tensors(scorer: MemberScorer) -> dict[int, torch.Tensor]:
    model = scorer._model
    assert isinstance(model, torch.nn.Module)
    return {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.numel()}


def num_bytes(*scorers: MemberScorer) -> int:
    each = {pointer: tensor for scorer in scorers for pointer, tensor in tensors(scorer).items()}
    return sum(tensor.nbytes for tensor in each.values())


def test_scores_are_bitwise_those_of_ensembles_with_a_backbone_of_their_own(bundles: list[Bundle]) -> None:
    load = make_sharing_loader()
    shared = [load(bundle) for bundle in bundles]
    for scorer, bundle in zip(shared, bundles, strict=True):
        alone = load_member_scorer(bundle)
        np.testing.assert_array_equal(scorer.score(SEQUENCES).raw, alone.score(SEQUENCES).raw)
    assert not np.allclose(shared[0].score(SEQUENCES).raw, shared[1].score(SEQUENCES).raw[:3])


def test_the_backbone_is_in_memory_once_and_adapters_are_not_shared(bundles: list[Bundle]) -> None:
    load = make_sharing_loader()
    first, second = (load(bundle) for bundle in bundles)
    backbone = {p.data_ptr() for p in first._model.backbone.body.embeddings.parameters()}  # type: ignore[attr-defined]
    assert backbone <= set(tensors(second))
    alone = [load_member_scorer(bundle) for bundle in bundles]
    assert num_bytes(*alone) - num_bytes(first, second) > 0.5 * num_bytes(alone[0])


def test_what_is_not_equal_is_not_shared(bundles: list[Bundle]) -> None:
    load = make_sharing_loader()
    scorers = [load(bundles[0], dtype=dtype) for dtype in ("float32", "float64")]
    assert not set(tensors(scorers[0])) & set(tensors(scorers[1]))


def test_the_backbone_goes_with_its_last_ensemble(bundles: list[Bundle]) -> None:
    load = make_sharing_loader()
    first, second = (load(bundle) for bundle in bundles)
    word = weakref.ref(next(first._model.backbone.body.parameters()))  # type: ignore[attr-defined]
    del first
    gc.collect()
    assert word() is not None
    np.testing.assert_array_equal(second.score(SEQUENCES).raw, load_member_scorer(bundles[1]).score(SEQUENCES).raw)
    del second
    gc.collect()
    assert word() is None


def test_weights_in_memory_do_not_follow_their_file(tmp_path: Path) -> None:
    """Transformers maps the file; a file that is written over would change what serves, and a shorter one end it."""
    bundle = make_bert_bundle(tmp_path / "tiny")
    scorer = load_member_scorer(bundle)
    before = scorer.score(SEQUENCES).raw
    for file in bundle.path.rglob("*.safetensors"):
        size = file.stat().st_size
        with file.open("r+b") as stream:
            stream.seek(size // 2)
            stream.write(b"\x41" * (size - size // 2))
    np.testing.assert_array_equal(scorer.score(SEQUENCES).raw, before)
