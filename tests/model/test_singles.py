"""K whole models: each scores as Transformers' own model does, and none can stand in for another."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quorum_client.types import ScoreItem, ScoreRequest
from quorum_model.bundle.parts import body_folder, save_body
from quorum_model.bundle.read import Bundle, read_bundle
from quorum_model.errors import BackboneMismatch, BundleCorrupt, SelfTestFailed, Unsupported
from quorum_model.loading import load_ensemble_model, load_member_scorer
from quorum_model.local import LocalScorer
from quorum_model.singles import SinglesModel
from tests.model.bundle.singles_bundle import fold_singles, make_singles_bundle, single_models
from tests.model.bundle.small_bundle import forge
from tests.model.test_member_scorer import rewrite
from tests.reference.tiny_models import ARCHITECTURES, Architecture, make_backbone, random_sequences

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
BERT = BY_NAME["bert"]
LENGTHS = [5, 40, 17, 1, 9, 9, 23]


def transformers_scores(models: list[Any], sequences: list[list[int]]) -> np.ndarray[Any, Any]:
    """(K, B): every model by its own class, one sequence at a time."""
    rows = []
    for model in models:
        model.config.pad_token_id = None  # one sequence, no padding: its last token is its last token
        with torch.no_grad():
            rows.append([float(model(input_ids=torch.tensor([sequence])).logits) for sequence in sequences])
    return np.array(rows)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_singles_bundle(tmp_path_factory.mktemp("singles") / "b", BERT, "first", num_members=3)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "llama", "deberta-v3"])
def test_every_member_scores_as_transformers_own_model(name: str) -> None:
    architecture = BY_NAME[name]
    models = single_models(architecture, 3)
    sequences = random_sequences(LENGTHS)
    expected = transformers_scores(copy.deepcopy(models), sequences)
    ours, _ = fold_singles(models, architecture.pooling)
    assert ours.attention == ("packed" if architecture.packs else "unpadded")
    with torch.inference_mode():
        shared = ours([sequences]).numpy()
        own = ours([sequences, sequences[::-1], sequences]).numpy()
    tolerance = 1e-4 * expected.std()  # fp32 through three layers, other kernels and another order of summation
    np.testing.assert_allclose(shared, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(own[1], expected[1, ::-1], rtol=0, atol=tolerance)
    assert min(np.abs(expected[i] - expected[j]).max() for i in range(3) for j in range(i)) > 100 * tolerance


def test_one_member_that_cannot_be_packed_makes_it_unpadded() -> None:
    models = [fold_singles(single_models(BY_NAME[name], 1), "first")[0].models[0] for name in ("bert", "deberta-v3")]
    assert SinglesModel(models).attention == "unpadded"
    assert SinglesModel(models[:1]).attention == "packed"


def test_rows_are_counted() -> None:
    ours, _ = fold_singles(single_models(BERT, 3), "first")
    with pytest.raises(ValueError, match="expected 1 or 3 rows, got 2"):
        ours([[[5]], [[6]]])


def test_a_bundle_scores_as_its_models_calibrated(bundle: Bundle) -> None:
    scorer = LocalScorer.open(str(bundle.path), device="cpu")
    assert (scorer.scorer.num_members, scorer.scorer.attention, scorer.scorer.dtype) == (3, "packed", "float32")
    sequences = random_sequences([6, 14])
    raw = transformers_scores(single_models(BERT, 3), sequences)
    expected = (raw - np.array([[0.0], [0.3], [0.6]])) / np.array([[1.0], [2.0], [3.0]])
    request = ScoreRequest(inputs=[ScoreItem(token_ids=ids) for ids in sequences], mode="lcb", beta=1.0)
    results = scorer.score(request).results
    for column, result in enumerate(results):
        # fp32, on scores of order 1
        assert result.members == pytest.approx(expected[:, column], abs=1e-4)
        assert result.score == pytest.approx(expected[:, column].mean() - expected[:, column].std(ddof=1), abs=1e-4)


def test_sharded_bodies_are_read_and_every_shard_is_wanted(bundle: Bundle, tmp_path: Path) -> None:
    backbone = fold_singles(single_models(BERT, 2), "first")[0].models[1].backbone

    def shard(root: Path) -> None:
        shutil.rmtree(root / body_folder("m01"))
        backbone.body.save_pretrained(root / body_folder("m01"), max_shard_size="20KB")

    sharded = rewrite(bundle, tmp_path / "sharded", shard)
    shards = sorted((sharded.path / body_folder("m01")).glob("model-*.safetensors"))
    assert len(shards) > 2
    sequences = random_sequences([6, 14])
    expected = load_member_scorer(bundle).score(sequences).raw
    np.testing.assert_array_equal(load_member_scorer(sharded).score(sequences).raw, expected)
    shards[1].unlink()
    forge(sharded.path)
    with pytest.raises(BundleCorrupt, match=f"{shards[1].name} is missing"):
        read_bundle(sharded.path)
    index = sharded.path / body_folder("m01") / "model.safetensors.index.json"
    index.write_text('{"weight_map": []}')
    forge(sharded.path)
    with pytest.raises(BundleCorrupt, match="is not an index of weights"):
        read_bundle(sharded.path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("member", ["m00", "m02"])
def test_a_member_without_its_body_is_refused(bundle: Bundle, tmp_path: Path, member: str, name: str) -> None:
    folder = shutil.copytree(bundle.path, tmp_path / "b")
    (folder / body_folder(member) / name).unlink()
    for _ in range(2):  # a manifest that does not mention it does not help
        with pytest.raises(BundleCorrupt, match=f"backbones/{member}/{name} is missing"):
            read_bundle(folder)
        forge(folder)


def test_a_flipped_bit_in_any_body_is_found(bundle: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle.path, tmp_path / "b")
    path = folder / body_folder("m01") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleCorrupt, match=r"backbones/m01/model\.safetensors has sha256"):
        read_bundle(folder)


def swap_bodies(root: Path) -> None:
    (root / body_folder("m01")).rename(root / "kept")
    (root / body_folder("m02")).rename(root / body_folder("m01"))
    (root / "kept").rename(root / body_folder("m02"))


def test_swapped_bodies_fail_the_self_test(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SelfTestFailed):
        load_member_scorer(rewrite(bundle, tmp_path / "swapped", swap_bodies))


def test_another_first_body_is_not_the_manifests(bundle: Bundle, tmp_path: Path) -> None:
    def replace(root: Path) -> None:
        source = root / body_folder("m01") / "model.safetensors"
        shutil.copy(source, root / body_folder("m00") / "model.safetensors")

    with pytest.raises(BackboneMismatch):
        load_member_scorer(rewrite(bundle, tmp_path / "other", replace))


def body_of(**options: Any) -> Callable[[Path], None]:
    """Replaces the last member's body by one of other sizes."""
    backbone = make_backbone(Architecture("bert", BERT.config, {**BERT.options, **options}, "first"))

    def replace(root: Path) -> None:
        shutil.rmtree(root / body_folder("m02"))
        save_body(root / body_folder("m02"), backbone)

    return replace


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_position_embeddings": 69}, "member m02: max_length is 70, but the backbone has positions for 69"),
        ({"vocab_size": 90}, "member m02 knows 90 token ids, the first member 97"),
    ],
)
def test_every_body_must_take_what_the_first_takes(
    bundle: Bundle, tmp_path: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(Unsupported, match=message):
        load_member_scorer(rewrite(bundle, tmp_path / "small", body_of(**options)))


def test_there_is_no_shared_backbone_to_ask_for(bundle: Bundle) -> None:
    with pytest.raises(Unsupported, match="no shared backbone"):
        load_ensemble_model(bundle, torch.float32, torch.device("cpu"))


def changed(manifest: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place: Any = manifest
    for part in parents:
        place = place[part]
    place[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("members/1/backbone", None, "member m01 needs a backbone"),
        ("members/1/backbone", "backbones/m00", "two members have the same backbone"),
        ("members/1/backbone", "../b/backbones/m01", "is missing"),
        ("members/1/adapter", "members/m01", "member m01 has an adapter, which would be ignored"),
        ("backbone/source", "bundle:backbones/m01", r"must be the first member's, bundle:backbones/m00"),
        ("shared_adapter", "shared_adapter", "no shared backbone"),
        ("kind", "linear", "member m00 has a backbone, which would be ignored"),
        ("kind", "merged", "kind 'merged' has one member"),
    ],
)
def test_manifests_that_contradict_themselves_are_refused(
    bundle: Bundle, tmp_path: Path, path: str, value: Any, message: str
) -> None:
    folder = shutil.copytree(bundle.path, tmp_path / "b")
    forge(folder, lambda manifest: changed(manifest, path, value))
    with pytest.raises(BundleCorrupt, match=message):
        read_bundle(folder)


def test_a_body_is_saved_as_it_was(tmp_path: Path) -> None:
    """Also from a model in use, whose attention is the packed one: that is no property of the weights."""
    ours, _ = fold_singles(single_models(BERT, 1), "first")
    save_body(tmp_path / "body", ours.models[0].backbone)
    assert sorted(path.name for path in (tmp_path / "body").iterdir()) == ["config.json", "model.safetensors"]
    text = (tmp_path / "body" / "config.json").read_text()
    assert "attn" not in text
    assert json.loads(text)["architectures"] == ["BertModel"]
