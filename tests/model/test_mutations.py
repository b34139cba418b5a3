"""The oracle tests can fail: each defect that would matter, put in on purpose, turns them red."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quorum_model import attention, narrowing, packing_trial
from quorum_model import model as model_module
from quorum_model.folded import FoldedLinear
from quorum_model.model import EnsembleModel
from quorum_model.narrowing import LastLayer
from quorum_model.packing import RowLayout
from tests.model.test_forward import check
from tests.reference.tiny_models import ARCHITECTURES

LLAMA = next(a for a in ARCHITECTURES if a.name == "llama")
BERT = ARCHITECTURES[0]


def ignore_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: FoldedLinear, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y if self.only_member is not None else y.expand(self.num_members, -1, -1)

    monkeypatch.setattr(FoldedLinear, "forward", forward)


def swap_two_members(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = model_module.stack_adapters

    def swapped(states: Any, name: str) -> tuple[Tensor, ...]:
        return stack([states[1], states[0], *states[2:]], name)

    monkeypatch.setattr(model_module, "stack_adapters", swapped)


def flip_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = FoldedLinear.forward

    def flipped(self: FoldedLinear, x: Tensor) -> Tensor:
        self.scaling, kept = -self.scaling, self.scaling
        y = forward(self, x)
        self.scaling = kept
        return y

    monkeypatch.setattr(FoldedLinear, "forward", flipped)


def forget_the_scaling_of_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    fold = model_module._fold

    def forgetful(*arguments: Any) -> dict[str, FoldedLinear]:
        layers = fold(*arguments)
        last = layers[sorted(layers)[-1]]
        last.scaling = torch.ones_like(last.scaling)
        return layers

    monkeypatch.setattr(model_module, "_fold", forgetful)


def skip_packing_in_one_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer sees the whole row as one sequence. The build-time trial is blinded: the oracle must notice."""
    row_attention = attention._attend_row
    calls = {"count": 0}

    def leaky(rule: Any, qkv: Any, layout: RowLayout, *rest: int) -> Tensor:
        calls["count"] += 1
        if calls["count"] % 3 == 0:
            layout = RowLayout(((0, layout.num_tokens),), ((),), ((0,),), ((),))
        return row_attention(rule, qkv, layout, *rest)

    monkeypatch.setattr(attention, "_attend_row", leaky)
    monkeypatch.setattr(EnsembleModel, "_narrow_last_layer", lambda _self: None)
    monkeypatch.setattr(packing_trial, "_PACKING_TOLERANCE", {torch.float32: float("inf")})


def lose_the_causal_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = attention.AttentionRule

    def blind(_is_causal: bool, *rest: Any) -> Any:
        return rule(False, *rest)

    monkeypatch.setattr(attention, "AttentionRule", blind)
    monkeypatch.setattr(packing_trial, "_PACKING_TOLERANCE", {torch.float32: float("inf")})


def pool_a_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer computes the token before the pooled one: what is pooled was never computed."""
    tokens = narrowing.pooled_tokens

    def shifted(*arguments: Any) -> list[list[int]]:
        return [[max(0, token - 1) for token in row] for row in tokens(*arguments)]

    monkeypatch.setattr(narrowing, "pooled_tokens", shifted)


def narrow_the_keys_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial is blinded, so that every module of the last layer that can be narrowed is."""

    def agrees(self: LastLayer, args: Any, kwargs: Any, batch: Any, _expected: Tensor) -> bool:
        try:
            with self.narrowing(batch):
                self._pooled(args, kwargs, batch)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
        return True

    monkeypatch.setattr(LastLayer, "_is_unchanged", agrees)


@pytest.mark.parametrize(
    ("mutate", "architecture"),
    [
        (ignore_adapters, BERT),
        (swap_two_members, BERT),
        (flip_a_sign, BERT),
        (forget_the_scaling_of_one_layer, BERT),
        (skip_packing_in_one_layer, BERT),
        (skip_packing_in_one_layer, LLAMA),
        (lose_the_causal_mask, LLAMA),
        (pool_a_neighbour, BERT),
        (pool_a_neighbour, LLAMA),
        (narrow_the_keys_too, BERT),
        (narrow_the_keys_too, LLAMA),
    ],
    ids=lambda value: value.__name__ if callable(value) else value.name,
)
def test_a_defect_turns_the_oracle_red(
    mutate: Callable[[pytest.MonkeyPatch], None], architecture: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check(architecture, torch.float32, tmp_path)


def test_leaking_sequences_are_noticed_when_a_model_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the blindfold, the build-time trial sees the leak and falls back to exact unpadded batches."""
    skip_packing_in_one_layer(monkeypatch)
    monkeypatch.setattr(packing_trial, "_PACKING_TOLERANCE", {torch.float32: 1e-3})
    with pytest.raises(AssertionError, match="unpadded"):
        check(BERT, torch.float32, tmp_path)
