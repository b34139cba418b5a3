"""Every form in which contestants get the members gives the same scores, and they are PEFT's, unpadded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from quorum_client.errors import InvalidRequest
from quorum_model.benchmark.padded import PaddedPeft, plan_padded
from quorum_model.benchmark.random_backbone import find_backbone
from quorum_model.benchmark.random_ensemble import RandomEnsemble, draw_ensemble, load_whole_model
from quorum_model.errors import Unsupported
from quorum_model.loading import load_member_scorer
from tests.model.benchmark.tiny_backbone import save_tiny_backbone
from tests.reference.peft_oracle import peft_scores
from tests.reference.tiny_models import random_sequences

SEQUENCES = random_sequences([5, 17, 9, 3, 17, 30])
# fp32 with scores of order 1: other kernels and another order of summation.
ATOL = 2e-5


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., RandomEnsemble]:
    def make(name: str = "bert", **changes: Any) -> RandomEnsemble:
        values: dict[str, Any] = {"kind": "lora", "members": 3, "rank": 4, "layers": "all", "max_length": 40}
        folder = tmp_path / f"backbone-{name}"
        return draw_ensemble(folder if folder.exists() else save_tiny_backbone(name, folder), **(values | changes))

    return make


def oracle(ensemble: RandomEnsemble, folder: Path) -> Any:
    base = load_whole_model(ensemble.backbone, torch.float32)
    base.set_attn_implementation("eager")
    return peft_scores(base, ensemble.states, ensemble.head_modules, SEQUENCES, ensemble.pooling, folder)


@pytest.mark.parametrize("name", ["bert", "llama", "roberta", "modernbert", "gpt2"])
def test_all_forms_give_the_scores_of_peft(name: str, draw: Callable[..., RandomEnsemble], tmp_path: Path) -> None:
    ensemble = draw(name, layers="top-half")
    expected = oracle(ensemble, tmp_path / "oracle")
    assert np.abs(expected[0] - expected[1]).min() > 1e-2  # members apart
    found = load_member_scorer(ensemble.write(tmp_path / "lora")).score(SEQUENCES).raw
    np.testing.assert_allclose(found, expected, atol=ATOL)
    one = load_member_scorer(ensemble.write_one(tmp_path / "one")).score(SEQUENCES).raw
    np.testing.assert_allclose(one, expected[:1], atol=ATOL)
    peer = PaddedPeft(
        ensemble.backbone,
        ensemble.write_adapters(tmp_path / "adapters"),
        dtype=torch.float32,
        device=torch.device("cpu"),
        sequences=SEQUENCES,
    )
    np.testing.assert_allclose(peer.one_after_another(SEQUENCES, 40), expected, atol=ATOL)
    if name not in ("modernbert", "roberta"):  # PEFT mixes no batch through heads that are more than linear layers
        np.testing.assert_allclose(peer.mixed(SEQUENCES, 200), expected, atol=ATOL)


def test_singles_are_the_same_members_merged(draw: Callable[..., RandomEnsemble], tmp_path: Path) -> None:
    expected = oracle(draw(), tmp_path / "oracle")
    bundle = draw(kind="singles").write(tmp_path / "singles")
    assert bundle.manifest.kind == "singles"
    np.testing.assert_allclose(load_member_scorer(bundle).score(SEQUENCES).raw, expected, atol=ATOL)


def test_linear_members_are_heads_alone(draw: Callable[..., RandomEnsemble], tmp_path: Path) -> None:
    ensemble = draw(kind="linear")
    assert ensemble.first_adapted == 3
    bundle = ensemble.write(tmp_path / "linear")
    found = load_member_scorer(bundle).score(SEQUENCES).raw
    model = load_whole_model(ensemble.backbone, torch.float32)
    for state, row in zip(ensemble.states, found, strict=True):
        model.load_state_dict(state.head, strict=False)
        with torch.no_grad():
            expected = [float(model(input_ids=torch.tensor([ids])).logits) for ids in SEQUENCES]
        np.testing.assert_allclose(row, expected, atol=ATOL)


def test_the_checkpoint_is_the_first_member(draw: Callable[..., RandomEnsemble], tmp_path: Path) -> None:
    ensemble = draw()
    folder = ensemble.write_checkpoint(tmp_path / "checkpoint")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        found = [float(model(input_ids=torch.tensor([ids])).logits) for ids in SEQUENCES]
    np.testing.assert_allclose(found, oracle(ensemble, tmp_path / "oracle")[0], atol=ATOL)


def test_fewer_members_are_the_first_of_more(draw: Callable[..., RandomEnsemble]) -> None:
    few, more = draw(members=1), draw(members=3)
    name = next(iter(few.states[0].lora))
    assert torch.equal(few.states[0].lora[name].b, more.states[0].lora[name].b)
    assert not torch.equal(more.states[0].lora[name].b, more.states[1].lora[name].b)


def test_updates_are_a_tenth_of_their_weights(draw: Callable[..., RandomEnsemble]) -> None:
    ensemble = draw(layers="top-sixth")
    assert ensemble.first_adapted == 2
    model = load_whole_model(ensemble.backbone, torch.float32)
    for name, lora in ensemble.states[0].lora.items():
        weight = model.get_submodule(name).weight
        assert float((lora.scaling * lora.b @ lora.a).norm() / weight.norm()) == pytest.approx(0.1)
    assert len(ensemble.states[0].lora) == 6


def test_sequences_too_long_for_the_backbone_are_refused(draw: Callable[..., RandomEnsemble]) -> None:
    with pytest.raises(Unsupported, match="positions for 80 tokens"):
        draw(max_length=81)


def test_padded_batches() -> None:
    assert plan_padded([3, 5, 1, 5], token_budget=10) == [[2, 0], [1, 3]]  # of 2 times 3 and 2 times 5 tokens
    assert plan_padded([3, 5, 1, 5], token_budget=9) == [[2, 0], [1], [3]]
    assert plan_padded([7], token_budget=2) == [[0]]  # a longer one still gets a batch


def test_a_random_backbone_has_the_shape_asked_for(tmp_path: Path) -> None:
    folder = find_backbone("random:2x16x24x4x2", tmp_path, max_length=30)
    model = load_whole_model(folder, torch.float32)
    assert model.config.num_hidden_layers == 2
    assert model.model.layers[0].self_attn.k_proj.weight.shape == (8, 16)
    assert model.model.layers[0].mlp.up_proj.weight.shape == (24, 16)


@pytest.mark.parametrize("source", ["random:2x16", "random:2x16x24x3x1", "random:2x16x24x4x3", "random:0x16x24x4x2"])
def test_shapes_that_no_llama_has(source: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        find_backbone(source, tmp_path, max_length=30)
