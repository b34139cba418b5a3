"""The ensemble on CUDA against PEFT in fp32, one member and one unpadded sequence at a time, on the CPU."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quorum_model.backbone import wrap_backbone
from quorum_model.benchmark.random_backbone import LlamaShape
from quorum_model.benchmark.random_ensemble import draw_ensemble
from quorum_model.bundle.read import Bundle
from quorum_model.compiled import compile_layers
from quorum_model.loading import load_member_scorer
from quorum_model.model import EnsembleModel
from quorum_model.passes import continue_from
from quorum_model.prefix_store import PrefixStore
from quorum_model.prefixes import share_prefixes
from tests.model.test_forward import LENGTHS, RANKS, family
from tests.reference.peft_oracle import peft_scores
from tests.reference.tiny_models import ARCHITECTURES, Architecture, make_model, random_member, random_sequences

# Root mean square, relative to the scores' spread. fp32: other kernels, another order of summation (and no TF32,
# PyTorch's default). bf16: 8 bits of mantissa through three layers; a CPU has 0.01 to 0.08.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15}
_GENTLER = 0.5
"""On the weights in bf16: as the CPU's tests have them they blow every rounding up."""


def build(
    architecture: Architecture, dtype: torch.dtype, folder: Path, sequences: list[list[int]], device: torch.device
) -> tuple[EnsembleModel, np.ndarray]:
    """The ensemble on the device, and the oracle's scores of the same (rounded) weights in fp32."""
    base = make_model(architecture)
    if dtype == torch.bfloat16:
        for parameter in base.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(_GENTLER)
    base = base.to(dtype).float()
    backbone = wrap_backbone(copy.deepcopy(base))
    members = [random_member(backbone, rank=rank, seed=index) for index, rank in enumerate(RANKS)]
    expected = peft_scores(base, members, backbone.head.module_names, sequences, architecture.pooling, folder)
    backbone.model.to(device, dtype)
    pooling: Any = architecture.pooling
    model = EnsembleModel(backbone, [m.lora for m in members], [m.head for m in members], pooling)
    return model.eval().requires_grad_(False), expected


def assert_close(actual: torch.Tensor, expected: np.ndarray, dtype: torch.dtype) -> None:
    error = _rms(actual.double().cpu().numpy() - expected) / expected.std()
    apart = min(_rms(expected[i] - expected[j]) for i in range(3) for j in range(i)) / expected.std()
    assert error <= TOLERANCE[dtype] < apart / 3, (error, apart)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_scores_equal_pefts(
    architecture: Architecture, dtype: torch.dtype, tmp_path: Path, device: torch.device
) -> None:
    if dtype == torch.bfloat16 and "moe" in architecture.name:
        pytest.skip("an expert more or less likely by a rounding is another expert: bf16 has no oracle there")
    sequences = random_sequences(LENGTHS)
    model, expected = build(architecture, dtype, tmp_path, sequences, device)
    assert model.attention == ("packed" if architecture.packs else "unpadded")
    with torch.inference_mode():
        assert_close(model([sequences]), expected, dtype)
        assert_close(model([sequences, sequences, sequences]), expected, dtype)
        alone = torch.cat([model([[sequence]]) for sequence in sequences], dim=1)
    assert_close(alone, expected, dtype)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral", "modernbert", "bert", "gpt2"])
def test_compiled_scores_equal_pefts(name: str, tmp_path: Path, device: torch.device) -> None:
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    sequences = random_sequences(LENGTHS)
    model, expected = build(architecture, torch.bfloat16, tmp_path, sequences, device)
    assert compile_layers(model)
    with torch.inference_mode():
        assert_close(model([sequences]), expected, torch.bfloat16)
        alone = torch.cat([model([[sequence]]) for sequence in sequences], dim=1)
    assert_close(alone, expected, torch.bfloat16)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_shared_and_stored_beginnings(name: str, tmp_path: Path, device: torch.device) -> None:
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    sequences = family()
    model, expected = build(architecture, torch.bfloat16, tmp_path / "shared", sequences, device)
    with torch.inference_mode():
        assert_close(model([share_prefixes(sequences, min_shared=2)]), expected, torch.bfloat16)
    prompts = random_sequences([66, 70], seed=7)
    sequences = [prompts[index % 2] + answer for index, answer in enumerate(random_sequences([4, 9, 2, 6], seed=8))]
    model, expected = build(architecture, torch.bfloat16, tmp_path / "stored", sequences, device)
    store, scores = PrefixStore(2**30), []
    with torch.inference_mode():
        for part in (sequences[:1], sequences[1:]):
            forest, new = continue_from(store, part)
            scores.append(model([forest]))
            store.put(new)
    assert forest.num_tokens < sum(map(len, sequences[1:]))
    assert_close(torch.cat(scores, dim=1), expected, torch.bfloat16)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    work = tmp_path_factory.mktemp("bundle")
    folder = LlamaShape(4, 256, 512, 4, 2).save(work / "backbone", max_length=512)
    return draw_ensemble(folder, kind="lora", members=3, rank=8, layers="all", max_length=512).write(work / "ensemble")


def test_a_bundle_gets_the_cpus_scores_compiled_and_through_the_store(bundle: Bundle) -> None:
    prompt = random_sequences([200], seed=1)[0]
    sequences = [prompt + answer for answer in random_sequences([40, 100, 7, 64], seed=2)] + random_sequences([300, 5])
    exact = load_member_scorer(bundle, device="cpu", dtype="float32", token_budget=512)
    expected = exact.score(sequences).raw
    for dtype, tolerance in (("float32", 1e-3), ("bfloat16", 0.1)):
        scorer = load_member_scorer(bundle, device="cuda", dtype=dtype)
        for _ in range(2):  # the second time beginnings come from the store
            actual = scorer.score(sequences)
            assert np.abs(actual.raw - expected).max() <= tolerance * expected.std()
        assert actual.computed_tokens < sum(map(len, sequences))


def test_out_of_memory_halves_the_pass_and_goes_on(bundle: Bundle) -> None:
    sequences = random_sequences([400] * 128)
    scorer = load_member_scorer(bundle, device="cuda", dtype="bfloat16", token_budget=65536, store_bytes=0)
    expected = scorer.score(sequences[:2]).raw
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
    try:
        actual = scorer.score(sequences).raw
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert scorer.token_budget < 65536
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual[:, :2], expected, rtol=0, atol=0.1 * expected.std())
