"""Packing, pooling and attention against plain loops, one sequence at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from quorum_model.packing import PACKING_KEYWORD, Packing, attend, pack, pool

LENGTHS = [[3, 7, 1, 12], [5, 2, 9, 4]]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_pack_lays_sequences_end_to_end() -> None:
    batch = pack([[[11, 12], [13, 14, 15]], [[21], [22]]], position_offset=2, pad_id=9)
    assert batch.input_ids.tolist() == [[11, 12, 13, 14, 15], [21, 22, 9, 9, 9]]
    assert batch.position_ids.tolist() == [[2, 3, 2, 3, 4], [2, 2, 2, 2, 2]]
    assert batch.packing.spans == [[(0, 2), (2, 5)], [(0, 1), (1, 2)]]


@pytest.mark.parametrize("rows", [[], [[]], [[[1], []]], [[[1]], [[1], [2]]]])
def test_pack_refuses_what_has_no_meaning(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"every row|max"):
        pack(rows)


@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS[:1]], ids=["own", "shared"])
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_pool_equals_a_loop(lengths: list[list[int]], pooling: Any) -> None:
    hidden = draw(2, max(map(sum, lengths)), 6)
    packing = Packing(lengths)
    actual = pool(hidden, packing, pooling)
    for row in range(2):
        for index, (start, end) in enumerate(packing.spans[row if len(lengths) > 1 else 0]):
            tokens = hidden[row, start:end]
            expected = {"first": tokens[0], "last": tokens[-1], "mean": tokens.sum(0) / (end - start)}[pooling]
            torch.testing.assert_close(actual[row, index], expected, rtol=1e-12, atol=1e-12)


def attention_by_loop(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, window: int | None, softcap: float | None
) -> Tensor:
    """One head, one query position at a time. (L, D) each."""
    rows = []
    for i in range(len(query)):
        visible = [j for j in range(len(key)) if (not causal or j <= i) and (window is None or abs(i - j) < window)]
        scores = torch.stack([query[i] @ key[j] / query.shape[1] ** 0.5 for j in visible])
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.exp() / scores.exp().sum()
        rows.append(sum(weight * value[j] for weight, j in zip(weights, visible, strict=True)))
    return torch.stack(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS[:1]], ids=["own", "shared"])
def test_attention_equals_a_loop(
    causal: bool, window: int | None, softcap: float | None, lengths: list[list[int]]
) -> None:
    packing = Packing(lengths)
    width = max(map(sum, lengths))
    query, key, value = draw(2, 4, width, 8), draw(2, 2, width, 8) + 0.1, draw(2, 2, width, 8) - 0.1  # grouped queries
    module: Any = SimpleNamespace(is_causal=causal)
    out, _ = attend(
        module, query, key, value, None, sliding_window=window, softcap=softcap, **{PACKING_KEYWORD: packing}
    )
    assert out.shape == (2, width, 4, 8)
    for row in range(2):
        for start, end in packing.spans[row if len(lengths) > 1 else 0]:
            for head in range(4):
                expected = attention_by_loop(
                    query[row, head, start:end],
                    key[row, head // 2, start:end],
                    value[row, head // 2, start:end],
                    causal=causal,
                    window=window,
                    softcap=softcap,
                )
                torch.testing.assert_close(out[row, start:end, head], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [{"attention_mask": torch.ones(1, 1, 3, 3)}, {"s_aux": torch.ones(4)}, {"position_bias": torch.ones(4)},
     {"dropout": 0.1}],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_attention_refuses_what_it_would_get_wrong(wrong: dict[str, Any]) -> None:
    query = draw(1, 4, 3, 8)
    mask = wrong.pop("attention_mask", None)
    with pytest.raises(RuntimeError, match="packed attention knows no"):
        attend(torch.nn.Module(), query, query, query, mask, **{PACKING_KEYWORD: Packing([[3]]), **wrong})


def test_attention_without_its_packing_is_refused() -> None:
    query = draw(1, 4, 3, 8)
    with pytest.raises(RuntimeError, match="without its packing"):
        attend(torch.nn.Module(), query, query, query, None)
