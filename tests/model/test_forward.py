"""The folded, packed forward pass against PEFT, one member and one unpadded sequence at a time."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from quorum_model.backbone import wrap_backbone
from quorum_model.model import EnsembleModel
from quorum_model.passes import continue_from
from quorum_model.prefix_store import PrefixStore
from quorum_model.prefixes import share_prefixes
from tests.reference.peft_oracle import peft_scores
from tests.reference.tiny_models import (
    ARCHITECTURES,
    Architecture,
    linear_names,
    make_backbone,
    make_model,
    random_member,
    random_sequences,
)

# Longer than the sliding windows (8, 16), shorter, equal ones, and a single token.
LENGTHS = [5, 40, 17, 1, 9, 9, 23]
RANKS = [4, 8, 2]

# fp64: only the order of summation differs. fp32: the same at 2^-24 through three layers, relative to the scores.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@pytest.fixture
def exact_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers rounds norms and softmax to fp32 even in an fp64 model; here fp64 means fp64."""
    monkeypatch.setattr(torch, "float32", torch.float64)


def build(architecture: Architecture, dtype: torch.dtype, folder: Path) -> tuple[EnsembleModel, np.ndarray]:
    """An ensemble of three members and the oracle's scores."""
    base = make_model(architecture, dtype)
    backbone = wrap_backbone(copy.deepcopy(base))
    members = [random_member(backbone, rank=rank, seed=index) for index, rank in enumerate(RANKS)]
    expected = peft_scores(
        base, members, backbone.head.module_names, random_sequences(LENGTHS), architecture.pooling, folder
    )
    model = EnsembleModel(
        backbone, [member.lora for member in members], [member.head for member in members], architecture.pooling
    )
    return model.eval(), expected


def check(architecture: Architecture, dtype: torch.dtype, folder: Path) -> None:
    model, expected = build(architecture, dtype, folder)
    assert model.attention == ("packed" if architecture.packs else "unpadded")
    sequences = random_sequences(LENGTHS)
    with torch.inference_mode():
        shared = model([sequences]).numpy()
        own = model([sequences, sequences[::-1], sequences]).numpy()
    tolerance = TOLERANCE[dtype] * expected.std()
    np.testing.assert_allclose(shared, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(own[0], expected[0], rtol=0, atol=tolerance)
    np.testing.assert_allclose(own[1], expected[1, ::-1], rtol=0, atol=tolerance)
    # The oracle can tell members apart: agreement with it is not vacuous.
    apart = min(np.abs(expected[i] - expected[j]).max() for i in range(3) for j in range(i))
    assert apart > 100 * tolerance


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_folded_packed_equals_peft_fp32(architecture: Architecture, tmp_path: Path) -> None:
    check(architecture, torch.float32, tmp_path)


# The grouped product of mixture-of-experts layers knows no fp64.
@pytest.mark.usefixtures("exact_float64")
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if "moe" not in a.name], ids=lambda a: a.name)
def test_folded_packed_equals_peft_fp64(architecture: Architecture, tmp_path: Path) -> None:
    check(architecture, torch.float64, tmp_path)


CAUSAL = [a for a in ARCHITECTURES if a.packs and a.pooling == "last"]


def family(vocab: int = 90) -> list[list[int]]:
    """Prompts of several lengths (shorter and longer than the windows), each with answers; nested and lonely ones."""
    system = random_sequences([6], seed=1)[0]
    prompts = [system + prompt for prompt in random_sequences([3, 20], seed=2)]
    answers = random_sequences([4, 11, 1, 17, 2, 9], seed=3)
    grown = [*[prompts[0] + answer for answer in answers[:3]], *[prompts[1] + answer for answer in answers[3:]]]
    return [*grown, prompts[1], grown[-1] + [5, 7], *random_sequences([12], seed=4)]


@pytest.mark.usefixtures("exact_float64")
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("architecture", CAUSAL, ids=lambda a: a.name)
def test_shared_prefixes_equal_peft_on_whole_sequences(
    architecture: Architecture, pooling: str, tmp_path: Path
) -> None:
    architecture = dataclasses.replace(architecture, pooling=pooling)
    base = make_model(architecture, torch.float64)
    backbone = wrap_backbone(copy.deepcopy(base))
    members = [random_member(backbone, rank=rank, seed=index) for index, rank in enumerate(RANKS)]
    sequences = family()
    expected = peft_scores(base, members, backbone.head.module_names, sequences, pooling, tmp_path)
    model = EnsembleModel(backbone, [m.lora for m in members], [m.head for m in members], pooling).eval()
    forest = share_prefixes(sequences, min_shared=2)
    assert forest.num_tokens < 0.6 * sum(map(len, sequences))
    assert max(len(forest.path(leaf)) for leaf in forest.leaves) >= 3
    with torch.inference_mode():
        actual = model([forest]).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[torch.float64] * expected.std())


@pytest.mark.usefixtures("exact_float64")
@pytest.mark.parametrize("architecture", CAUSAL, ids=lambda a: a.name)
def test_stored_beginnings_equal_peft_on_whole_sequences(architecture: Architecture, tmp_path: Path) -> None:
    base = make_model(architecture, torch.float64)
    backbone = wrap_backbone(copy.deepcopy(base))
    names = linear_names(backbone)[len(linear_names(backbone)) // 2 :]  # below them one row is stored for all members
    members = [random_member(backbone, rank=rank, seed=index, names=names) for index, rank in enumerate(RANKS)]
    prompts = random_sequences([66, 70], seed=7)
    answers = random_sequences([4, 9, 2, 6], seed=8)
    sequences = [prompts[index % 2] + answer for index, answer in enumerate(answers)]
    expected = peft_scores(base, members, backbone.head.module_names, sequences, "last", tmp_path)
    model = EnsembleModel(backbone, [m.lora for m in members], [m.head for m in members], "last").eval()
    assert model.stores_prefixes
    store = PrefixStore(2**30)
    scores, computed = [], []
    for part in (sequences[:1], sequences[1:]):
        forest, new = continue_from(store, part)
        with torch.inference_mode():
            scores.append(model([forest]).numpy())
        store.put(new)
        computed.append(forest.num_tokens)
    actual = np.concatenate(scores, axis=1)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[torch.float64] * expected.std())
    first, second, third, last = (len(sequence) for sequence in sequences)
    assert computed == [first, third - 64 + second + last - 70]  # the other prompt is shared within the pass


def test_a_bidirectional_backbone_shares_no_prefixes() -> None:
    backbone = make_backbone(ARCHITECTURES[0])
    model = EnsembleModel(backbone, None, [random_member(backbone, rank=4, seed=0).head], "first")
    assert not model.shares_prefixes
    with pytest.raises(ValueError, match="causal"):
        model([share_prefixes([[1, 2, 3], [1, 2, 4]], min_shared=2)])


# What is narrowed of the last layer, and one of its products that must have run over the pooled tokens alone.
NARROWED = {
    "bert": (["intermediate", "output", "attention.output", "attention.self.query"], "intermediate.dense"),
    "modernbert": (["mlp_norm", "mlp", "attn.Wo"], "mlp.Wi"),
    "llama": (["mlp", "post_attention_layernorm", "self_attn.q_proj", "self_attn.o_proj"], "mlp.down_proj"),
    "gpt2": (["ln_2", "mlp", "attn.c_proj"], "mlp.c_fc"),
    "bert-mean": (None, "intermediate.dense"),
}


@pytest.mark.parametrize("name", NARROWED)
def test_the_last_layer_computes_what_is_pooled(name: str) -> None:
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    backbone = make_backbone(architecture)
    members = [random_member(backbone, rank=4, seed=index) for index in range(3)]
    model = EnsembleModel(backbone, [m.lora for m in members], [m.head for m in members], architecture.pooling).eval()
    modules, product = NARROWED[name]
    assert (model._last_layer and model._last_layer.narrowed_modules) == modules
    widths: list[int] = []
    layers = [layer for path, layer in model.folded.items() if path.endswith(product)]
    for layer in layers:
        layer.register_forward_hook(lambda _m, _a, out: widths.append(out.shape[1]))
    sequences = random_sequences(LENGTHS)
    with torch.inference_mode():
        model([sequences])
    assert len(widths) == 3
    assert widths[-1] == (sum(LENGTHS) if modules is None else len(LENGTHS))
    model([sequences])  # with gradients, training's dropout masks are of the whole row
    assert widths[3:] == [sum(LENGTHS)] * 3


@pytest.mark.parametrize("name", [name for name in NARROWED if NARROWED[name][0]])
def test_what_does_not_run_is_not_narrowed(name: str) -> None:
    """In bf16 a folded layer reads its base's weight, and the base itself is not called."""
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    backbone = make_backbone(architecture, torch.bfloat16)
    members = [random_member(backbone, rank=4, seed=index) for index in range(3)]
    model = EnsembleModel(backbone, [m.lora for m in members], [m.head for m in members], architecture.pooling).eval()
    assert model._last_layer is not None
    assert model._last_layer.narrowed_modules == NARROWED[name][0]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_score_does_not_depend_on_companions(architecture: Architecture) -> None:
    backbone = make_backbone(architecture)
    members = [random_member(backbone, rank=4, seed=index) for index in range(3)]
    model = EnsembleModel(backbone, [m.lora for m in members], [m.head for m in members], architecture.pooling).eval()
    sequences = random_sequences(LENGTHS)
    with torch.inference_mode():
        together = model([sequences])
        backwards = model([sequences[::-1]]).flip(1)
        alone = torch.cat([model([[sequence]]) for sequence in sequences], dim=1)
    # fp32: the kernels block other shapes otherwise, so sums round differently.
    scale = float(alone.abs().max())
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(backwards, alone, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "mistral", "gpt2"])
def test_a_closing_eos_that_is_also_the_pad_token_is_the_last_token(name: str, tmp_path: Path) -> None:
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    eos = architecture.options["eos_token_id"]
    assert eos == architecture.options["pad_token_id"]
    base = make_model(architecture)
    backbone = wrap_backbone(copy.deepcopy(base))
    member = random_member(backbone, rank=4, seed=0)
    sequences = [[*sequence, eos] for sequence in random_sequences([4, 20, 9])]
    expected = peft_scores(base, [member], backbone.head.module_names, sequences, "last", tmp_path)
    model = EnsembleModel(backbone, [member.lora], [member.head], "last").eval()
    with torch.inference_mode():
        actual = model([sequences]).numpy()
        without = model([[sequence[:-1] for sequence in sequences]]).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[torch.float32] * expected.std())
    assert np.abs(actual - without).min() > 1e-3  # pooling one token too early would show


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_bf16_stays_near_fp32_and_its_companions(name: str) -> None:
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    sequences = random_sequences(LENGTHS)
    scores = {}
    for dtype in (torch.float32, torch.bfloat16):
        backbone = make_backbone(architecture)
        members = [random_member(backbone, rank=4, seed=index) for index in range(3)]
        backbone.model.to(dtype)
        model = EnsembleModel(backbone, [m.lora for m in members], [m.head for m in members], architecture.pooling)
        with torch.inference_mode():
            scores[dtype] = model([sequences])
            alone = torch.cat([model([[sequence]]) for sequence in sequences], dim=1)
    # 8 bits of mantissa: each of three layers rounds its residual stream to 2^-9 of it, and random tiny models are
    # worse than trained ones. Stated as a share of the scores' spread, for fp32 and for other companions alike.
    spread = float(scores[torch.float32].std())
    assert float((scores[torch.bfloat16] - scores[torch.float32]).abs().max()) < 0.2 * spread
    assert float((scores[torch.bfloat16] - alone).abs().max()) < 0.2 * spread


@pytest.mark.parametrize("name", ["bert", "modernbert", "llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("part", ["top", "mlp", "differing"])
def test_adapters_on_some_layers(name: str, part: str, tmp_path: Path) -> None:
    """The trunk below the first adapted layer runs once; members may adapt different layers."""
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    base = make_model(architecture)
    backbone = wrap_backbone(copy.deepcopy(base))
    names = linear_names(backbone)
    chosen = {
        "top": [names[len(names) * 2 // 3 :]] * 3,
        "mlp": [[n for n in names if "attn" not in n and "attention" not in n]] * 3,
        "differing": [names[::3], names[1::3], names[2::3]],
    }[part]
    members = [random_member(backbone, rank=4, seed=index, names=own) for index, own in enumerate(chosen)]
    sequences = random_sequences(LENGTHS)
    expected = peft_scores(base, members, backbone.head.module_names, sequences, architecture.pooling, tmp_path)
    model = EnsembleModel(backbone, [m.lora for m in members], [m.head for m in members], architecture.pooling)
    assert model.attention == "packed"
    rows_seen: list[int] = []
    first_layer = next(m for m in backbone.body.modules() if type(m).__name__.endswith(("Layer", "Block")))
    first_layer.register_forward_hook(lambda _m, _a, out: rows_seen.append((out if isinstance(out, torch.Tensor)
                                                                            else out[0]).shape[0]))  # fmt: skip
    with torch.inference_mode():
        actual = model([sequences]).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[torch.float32] * expected.std())
    if part == "top":
        assert rows_seen == [1]


def test_heads_alone_run_the_backbone_once() -> None:
    """Against Transformers' own model with each member's head loaded into it."""
    base = make_model(ARCHITECTURES[0])
    backbone = wrap_backbone(copy.deepcopy(base))
    members = [random_member(backbone, rank=4, seed=index) for index in range(3)]
    model = EnsembleModel(backbone, None, [member.head for member in members], "first")
    sequences = random_sequences(LENGTHS)
    calls: list[int] = []
    backbone.body.register_forward_hook(lambda _m, _a, out: calls.append(out.last_hidden_state.shape[0]))
    with torch.inference_mode():
        scores = model([sequences])
    assert calls == [1]
    for index, member in enumerate(members):
        base.load_state_dict(member.head, strict=False)
        with torch.inference_mode():
            expected = torch.stack([base(input_ids=torch.tensor([s])).logits[0, 0] for s in sequences])
        torch.testing.assert_close(scores[index], expected, rtol=1e-4, atol=1e-5)  # fp32, another order of summation


def test_every_member_differs_from_the_base_and_from_every_other() -> None:
    backbone = make_backbone(ARCHITECTURES[0])
    members = [random_member(backbone, rank=4, seed=index) for index in range(3)]
    head = members[0].head  # one head for all: what differs is the adapters
    sequences = random_sequences(LENGTHS)
    with torch.inference_mode():
        base = EnsembleModel(backbone, None, [head], "first")([sequences])
        scores = EnsembleModel(backbone, [m.lora for m in members], [head] * 3, "first")([sequences])
    rows = [base[0], *scores]
    for i in range(4):
        for j in range(i):
            assert float((rows[i] - rows[j]).abs().max()) > 0.01
