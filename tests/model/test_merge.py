"""The average of members against weights that PEFT merged and plain arithmetic averaged."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model

from quorum_model.adapters import AdapterState, LoraWeights, read_adapter, write_adapter
from quorum_model.backbone import wrap_backbone
from quorum_model.bundle.manifest import MemberCalibration
from quorum_model.errors import BundleCorrupt, HeadMissing
from quorum_model.merge import merge_heads, merge_members, merge_updates, projection_of
from quorum_model.model import EnsembleModel
from tests.reference.peft_oracle import peft_model, peft_scores
from tests.reference.tiny_models import (
    ARCHITECTURES,
    linear_names,
    make_backbone,
    make_model,
    random_member,
    random_sequences,
)

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
LENGTHS = [5, 40, 17, 1, 9, 9, 23]
CALIBRATION = [
    MemberCalibration(mean=0.5, scale=2.0), MemberCalibration(mean=-1.5, scale=0.25), MemberCalibration(mean=3.0)
]  # fmt: skip
PROJECTION = {"bert": "classifier", "roberta": "classifier.out_proj", "modernbert": "classifier", "llama": "score",
              "gpt2": "score", "distilbert": "classifier", "deberta-v3": "classifier"}  # fmt: skip


@pytest.fixture
def exact_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers rounds norms and softmax to fp32 even in an fp64 model; here fp64 means fp64."""
    monkeypatch.setattr(torch, "float32", torch.float64)


def unlike_members(backbone: Any) -> list[AdapterState]:
    """Of other ranks, scalings and modules."""
    names = linear_names(backbone)
    chosen = [names, names[::2], names[1:]]
    return [
        random_member(backbone, rank=rank, seed=seed, names=chosen[seed], scaling=scaling)
        for seed, (rank, scaling) in enumerate([(4, 2.0), (2, 0.7), (3, 1 / 3)])
    ]


def averaged_model(base: Any, members: list[AdapterState], projection: str, folder: Path) -> Any:
    """PEFT adds every member's update into the weights of a copy of `base`; then all weights are averaged.

    The head by hand: the projection divided by the member's scale, its bias less the member's mean before that.
    """
    states = []
    for index, member in enumerate(members):
        loaded = peft_model(base, AdapterState(member.lora), [], folder / f"merged-by-peft-{index}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT remarks on Conv1D
            state = {name: value.clone() for name, value in loaded.merge_and_unload().state_dict().items()}
        state |= member.head
        scale, mean = CALIBRATION[index].scale, CALIBRATION[index].mean
        state[f"{projection}.weight"] = state[f"{projection}.weight"] / scale
        if f"{projection}.bias" in state:
            state[f"{projection}.bias"] = (state[f"{projection}.bias"] - mean) / scale
        states.append(state)
    averaged = copy.deepcopy(base)
    averaged.load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    return averaged.eval()


def transformers_scores(model: Any, sequences: list[list[int]]) -> np.ndarray[Any, Any]:
    model.config.pad_token_id = None  # one sequence, no padding: its last token is its last token
    with torch.no_grad():
        return np.array([float(model(input_ids=torch.tensor([sequence])).logits) for sequence in sequences])


@pytest.mark.usefixtures("exact_float64")
@pytest.mark.parametrize("name", sorted(PROJECTION))
def test_merged_scores_are_those_of_the_averaged_weights(name: str, tmp_path: Path) -> None:
    architecture = BY_NAME[name]
    base = make_model(architecture, torch.float64)
    backbone = wrap_backbone(copy.deepcopy(base))
    assert projection_of(backbone.head) == PROJECTION[name]
    members = unlike_members(backbone)
    sequences = random_sequences(LENGTHS)
    expected = transformers_scores(averaged_model(base, members, PROJECTION[name], tmp_path), sequences)
    merged = merge_members(members, CALIBRATION, projection_of(backbone.head))
    model = EnsembleModel(backbone, [merged.state.lora], [merged.state.head], architecture.pooling).eval()
    with torch.inference_mode():
        actual = model([sequences])[0].numpy()
    # fp64: the product of the concatenated factors sums in another order than the average of products.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9 * max(1.0, float(np.abs(expected).max())))
    assert expected.std() > 1e-3  # agreement is not vacuous
    has_bias = f"{PROJECTION[name]}.bias" in merged.state.head
    assert merged.offset == (0.0 if has_bias else pytest.approx((0.5 / 2 - 1.5 / 0.25 + 3.0) / 3))


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_merged_is_an_adapter_for_plain_peft(name: str, tmp_path: Path) -> None:
    """Ranks differ by module where members adapt other modules: PEFT must read them all as we do."""
    architecture = BY_NAME[name]
    base = make_model(architecture)
    backbone = wrap_backbone(copy.deepcopy(base))
    state = merge_members(unlike_members(backbone), CALIBRATION, projection_of(backbone.head)).state
    ranks = {update.a.shape[0] for update in state.lora.values()}
    assert len(ranks) > 1
    assert max(ranks) <= 4 + 2 + 3
    head_modules = backbone.head.module_names
    write_adapter(tmp_path / "m00", state, base_source="base", alpha=max(ranks), head_modules=head_modules)
    sequences = random_sequences(LENGTHS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on Conv1D and on missing base names
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "m00")).eval()
    expected = transformers_scores(loaded.base_model.model, sequences)
    read = read_adapter(tmp_path / "m00")
    for module, update in state.lora.items():
        assert read.lora[module].scaling == pytest.approx(update.scaling, rel=1e-12)
    model = EnsembleModel(backbone, [state.lora], [state.head], architecture.pooling).eval()
    with torch.inference_mode():
        actual = model([sequences])[0].numpy()
    # fp32 through three layers, another order of summation
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * expected.std())


def test_members_made_by_peft_with_rslora_and_patterns_are_averaged_as_peft_scales_them(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {"r": 4, "lora_alpha": 8, "use_rslora": True},
        {"r": 2, "lora_alpha": 3, "rank_pattern": {"query": 3}, "alpha_pattern": {"value": 5}},
    ]
    deltas: list[dict[str, torch.Tensor]] = []
    for index, chosen in enumerate(options):
        base = make_model(BY_NAME["bert"])
        before = {name: value.clone() for name, value in base.state_dict().items()}
        config = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], modules_to_save=[], **chosen)
        model = get_peft_model(base, config)
        torch.manual_seed(index)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_()
        model.save_pretrained(str(tmp_path / f"m{index}"))
        after = model.merge_and_unload().state_dict()
        deltas.append({name: after[name] - value for name, value in before.items() if name.endswith(".weight")})
    merged = merge_updates([read_adapter(tmp_path / f"m{index}").lora for index in range(2)])
    assert len(merged) == 6  # query and value in three layers
    for name, update in merged.items():
        expected = (deltas[0][f"{name}.weight"] + deltas[1][f"{name}.weight"]) / 2
        # The oracle is a difference of fp32 weights of order 1.
        torch.testing.assert_close(update.b @ update.a, expected, rtol=0, atol=2e-6)
        assert update.scaling == 1.0
    assert merged["bert.encoder.layer.0.attention.self.query"].a.shape[0] == 4 + 3
    assert merged["bert.encoder.layer.0.attention.self.value"].a.shape[0] == 4 + 2


@settings(max_examples=30, deadline=None)
@given(
    ranks=st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any),
    scalings=st.lists(st.floats(-8, 8), min_size=5, max_size=5),
    seed=st.integers(0, 999),
)
def test_the_concatenated_update_is_the_mean_of_the_updates(ranks: list[int], scalings: list[float], seed: int) -> None:
    """Rank 0 is a member that does not adapt the module, which still counts."""
    rng = np.random.default_rng(seed)
    members, mean = [], np.zeros((6, 5))
    for rank, scaling in zip(ranks, scalings, strict=False):
        a, b = rng.normal(size=(rank, 5)), rng.normal(size=(6, rank))
        members.append({"x": LoraWeights(torch.tensor(a), torch.tensor(b), scaling)} if rank else {})
        mean += scaling * b @ a / len(ranks)
    update = merge_updates(members)["x"]
    np.testing.assert_allclose((update.b @ update.a).numpy(), mean, rtol=0, atol=1e-12)  # fp64
    assert update.a.shape[0] == sum(ranks)


def test_adapters_in_bf16_are_averaged_in_fp32() -> None:
    a, b = torch.ones(1, 2, dtype=torch.bfloat16), torch.ones(2, 1, dtype=torch.bfloat16)
    merged = merge_updates([{"x": LoraWeights(a, b, 1 / 3)}] * 3)["x"]
    assert (merged.a.dtype, merged.b.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(merged.b @ merged.a, torch.full((2, 2), 1 / 3), rtol=1e-6, atol=0)  # bf16: 4e-3


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_over_one_vector_the_projection_gives_the_mean_of_the_calibrated_scores(name: str) -> None:
    """Exact where only projections differ: what comes before is the same for every member."""
    head = make_backbone(BY_NAME[name], torch.float64).head
    own = {head.public_name(key): value.detach() for key, value in head.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    heads = [
        {
            key: torch.randn(value.shape, generator=generator, dtype=value.dtype)
            if key.startswith(f"{PROJECTION[name]}.")
            else value
            for key, value in own.items()
        }
        for _ in range(3)
    ]
    merged, offset = merge_heads(heads, CALIBRATION, PROJECTION[name])

    def run(state: dict[str, torch.Tensor], pooled: torch.Tensor) -> torch.Tensor:
        names = {key: state[head.public_name(key)] for key, _ in head.named_parameters()}
        scores: torch.Tensor = torch.func.functional_call(head, names, (pooled,))
        return scores

    pooled = torch.randn(7, 32, generator=generator, dtype=torch.float64)
    calibrated = [(run(state, pooled) - c.mean) / c.scale for state, c in zip(heads, CALIBRATION, strict=True)]
    expected = torch.stack(calibrated).mean(dim=0)
    torch.testing.assert_close(run(merged, pooled) - offset, expected, rtol=0, atol=1e-12)  # fp64


def test_members_with_equal_updates_and_a_linear_head_lose_nothing(tmp_path: Path) -> None:
    """The merged score is then the ensemble's calibrated mean."""
    architecture = BY_NAME["llama"]
    base = make_model(architecture)
    backbone = wrap_backbone(copy.deepcopy(base))
    members = [random_member(backbone, rank=3, seed=seed) for seed in range(3)]
    members = [replace(member, lora=members[0].lora) for member in members]
    sequences = random_sequences(LENGTHS)
    raw = peft_scores(base, members, backbone.head.module_names, sequences, "last", tmp_path)
    means = np.array([[c.mean] for c in CALIBRATION])
    scales = np.array([[c.scale] for c in CALIBRATION])
    expected = ((raw - means) / scales).mean(axis=0)
    merged = merge_members(members, CALIBRATION, "score")
    model = EnsembleModel(backbone, [merged.state.lora], [merged.state.head], "last").eval()
    with torch.inference_mode():
        actual = model([sequences])[0].numpy() - merged.offset
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * expected.std())  # fp32


def test_updates_and_heads_that_do_not_fit_are_refused() -> None:
    update = LoraWeights(torch.ones(2, 5), torch.ones(6, 2), 1.0)
    with pytest.raises(BundleCorrupt, match=r"updates of body\.x have different shapes"):
        merge_updates([{"body.x": update}, {"body.x": replace(update, a=torch.ones(2, 4))}])
    one = {"score.weight": torch.ones(1, 4)}
    for other in ({}, {"score.weight": torch.ones(1, 5)}, {**one, "score.bias": torch.ones(1)}):
        with pytest.raises(HeadMissing, match="differ"):
            merge_heads([one, other], CALIBRATION[:2], "score")
    with pytest.raises(HeadMissing, match="lack the projection"):
        merge_heads([one, one], CALIBRATION[:2], "classifier")


def test_a_single_member_is_its_own_average() -> None:
    backbone = make_backbone(BY_NAME["bert"])
    member = random_member(backbone, rank=2, seed=0, scaling=0.5)
    merged = merge_members([member], [MemberCalibration()], "classifier")
    assert math.isclose(merged.offset, 0.0)
    for name, update in member.lora.items():
        torch.testing.assert_close(merged.state.lora[name].b, update.b * 0.5, rtol=0, atol=0)
    for name, tensor in member.head.items():
        torch.testing.assert_close(merged.state.head[name], tensor, rtol=0, atol=0)
