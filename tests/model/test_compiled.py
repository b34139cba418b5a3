"""Compiled layers on a CPU: the graphs that CUDA would run, by the compiler's own slow reference backend."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AttentionInterface

from quorum_model.attention import ATTENTION_NAME, attend
from quorum_model.compiled import compile_layers, pays_to_compile
from quorum_model.model import EnsembleModel
from tests.reference.tiny_models import ARCHITECTURES, make_backbone, random_member, random_sequences

LENGTHS = [[5, 40, 17, 1, 9], [30, 2], [11]]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    AttentionInterface.register(ATTENTION_NAME, attend)
    torch._dynamo.reset()


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, kind: str = "lora") -> EnsembleModel:
    backbone = make_backbone(next(a for a in ARCHITECTURES if a.name == name), dtype)
    members = [random_member(backbone, rank=4, seed=seed + index) for index in range(3)]
    pooling: Any = "last" if hasattr(backbone.model, "score") else "first"
    lora = [member.lora for member in members] if kind == "lora" else None
    return EnsembleModel(backbone, lora, [m.head for m in members], pooling).eval().requires_grad_(False)


def scores(model: EnsembleModel) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model([random_sequences(lengths)]) for lengths in LENGTHS]


@pytest.mark.parametrize(
    "name",
    ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "gemma2", "modernbert", "gpt2"))],
)
def test_compiled_layers_give_the_scores_of_plain_ones(name: str) -> None:
    model = build(name)
    expected = scores(model)
    assert compile_layers(model, backend="aot_eager")
    assert counters["stats"]["unique_graphs"] > 0
    for actual, plain in zip(scores(model), expected, strict=True):
        torch.testing.assert_close(actual, plain, rtol=1e-9, atol=1e-9)


def test_in_half_precision_the_product_is_still_added_to_the_update() -> None:
    """bf16: an update added to a product that is rounded already would differ in a tenth of all scores' last bits."""
    model = build("llama", torch.bfloat16)
    expected = scores(model)
    assert compile_layers(model, backend="aot_eager")
    for actual, plain in zip(scores(model), expected, strict=True):
        assert torch.equal(actual, plain)  # the same kernels in the same order: nothing is fused by this backend


def test_neither_another_batch_nor_another_ensemble_of_the_shape_is_compiled_again() -> None:
    compile_layers(build("llama"), backend="aot_eager")
    first = counters["stats"]["unique_graphs"]
    model = build("llama", seed=10)
    assert compile_layers(model, backend="aot_eager")
    scores(model)
    assert counters["stats"]["unique_graphs"] == first


def test_where_the_compiler_fails_layers_run_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_graph: object, _inputs: object) -> Any:
        raise RuntimeError("no compiler here")

    model = build("llama")
    expected = scores(model)
    with caplog.at_level(logging.WARNING):
        assert not compile_layers(model, backend=broken)
    assert "no compiler here" in caplog.text
    for actual, plain in zip(scores(model), expected, strict=True):
        assert torch.equal(actual, plain)


def test_where_the_compiler_gives_other_scores_layers_run_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    def wrong(graph: Any, _inputs: object) -> Any:
        return lambda *args: tuple(
            out * 1.5 if isinstance(out, torch.Tensor) and out.is_floating_point() else out for out in graph(*args)
        )

    model = build("llama")
    expected = scores(model)
    with caplog.at_level(logging.WARNING):
        assert not compile_layers(model, backend=wrong)
    assert "differ by" in caplog.text
    for actual, plain in zip(scores(model), expected, strict=True):
        assert torch.equal(actual, plain)


def test_what_cannot_be_packed_is_not_compiled() -> None:
    assert not compile_layers(build("deberta-v3"), backend="aot_eager")


def test_it_pays_on_cuda_in_half_precision_alone() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert pays_to_compile(cuda, torch.bfloat16)
    assert not pays_to_compile(cuda, torch.float32)
    assert not pays_to_compile(cpu, torch.bfloat16)
