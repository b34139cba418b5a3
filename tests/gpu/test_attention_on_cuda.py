"""The variable-length kernel against the loop over single queries and keys that the CPU's attention is tested with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quorum_model.attention import attend
from quorum_model.packing import PACKING_KEYWORD, Packing, lay_out, packing_of
from quorum_model.prefixes import share_prefixes
from quorum_model.varlen import can_attend_varlen

LENGTHS = [5, 200, 17, 1, 130, 9]
FAMILY = [[*range(70), *range(100 + 10 * index, 100 + 10 * index + size)] for index, size in enumerate((4, 9, 1, 30))]


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, visible: list[list[int]]) -> torch.Tensor:
    """(K, T, H, D) in fp64 on the CPU; visible: for each token, those that it sees."""
    query, key, value = (tensor.double().cpu() for tensor in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = torch.zeros_like(query)
    for token, seen in enumerate(visible):
        scores = torch.einsum("khd,khsd->khs", query[:, :, token], key[:, :, seen]) * query.shape[3] ** -0.5
        out[:, :, token] = torch.einsum("khs,khsd->khd", scores.softmax(-1), value[:, :, seen])
    return out.transpose(1, 2)


def visible_of(spans: list[list[tuple[int, int]]], causal: bool, window: int | None) -> list[list[int]]:
    """For each token of a row, those that it sees; spans: by run, what comes before it, and itself last."""
    seen: dict[int, list[int]] = {}
    for own in spans:
        tokens = [token for start, end in own for token in range(start, end)]
        first = len(tokens) - (own[-1][1] - own[-1][0])
        for place in range(first, len(tokens)):
            low = 0 if window is None else max(0, place - window + 1)
            high = place + 1 if causal else len(tokens) if window is None else min(len(tokens), place + window)
            seen[tokens[place]] = tokens[low:high]
    return [seen[token] for token in sorted(seen)]


def check(packing: Packing, width: int, device: torch.device, causal: bool, window: int | None, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, width, size, generator=generator).to(device, torch.bfloat16) for heads in (4, 2, 2)
    )
    assert can_attend_varlen(query)
    module: Any = SimpleNamespace(is_causal=causal)
    options: Any = {"sliding_window": window, PACKING_KEYWORD: packing}
    actual, _ = attend(module, query, key, value, None, **options)
    layout = packing.rows[0]
    spans = [[*before, span] for before, span in zip(layout.before, layout.spans, strict=True)]
    expected = exact(query, key, value, visible_of(spans, causal, window))
    # bf16: probabilities and the result are rounded to 8 bits; values are of order 1.
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=2**-7, atol=2**-6)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("causal", [True, False])
def test_the_kernel_equals_a_loop(causal: bool, window: int | None, size: int, device: torch.device) -> None:
    check(packing_of([LENGTHS]), sum(LENGTHS), device, causal, window, size)


@pytest.mark.parametrize("window", [None, 16])
def test_the_kernel_behind_a_shared_prefix_equals_a_loop(window: int | None, device: torch.device) -> None:
    forest = share_prefixes(FAMILY, min_shared=2)
    check(Packing([lay_out(forest)]), forest.num_tokens, device, True, window, 64)


def test_passes_of_one_token_a_sequence(device: torch.device) -> None:
    check(packing_of([[1, 1, 1]]), 3, device, True, None, 64)
