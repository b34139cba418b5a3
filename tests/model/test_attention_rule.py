"""Attention of one sequence, written out: against one query at a time, whatever the form, the cut and the dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quorum_model import attention_rule
from quorum_model.attention_rule import AttentionRule
from tests.model.test_attention import attention_by_loop
from tests.model.test_packing import draw

# Of outputs of about 1: bf16 has 8 bits, and scores, probabilities and outputs are rounded to it. SDPA rounds
# probabilities and outputs alone.
WRITTEN_OUT, FUSED = 0.03, 0.01


def inputs(queries: int, keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """(2, 4, L, 8) queries over (2, 2, S, 8) keys: two heads share one."""
    drawn = draw(2, 4, keys, 8)[:, :, keys - queries :], draw(2, 2, keys, 8) + 0.1, draw(2, 2, keys, 8) - 0.1
    query, key, value = (tensor.to(dtype) for tensor in drawn)
    return query, key, value


def by_loop(qkv: tuple[Tensor, Tensor, Tensor], *, causal: bool, window: int | None, softcap: float | None) -> Tensor:
    """In float64; of queries that are the last of all positions."""
    query, key, value = (tensor.double() for tensor in qkv)
    missing = key.shape[2] - query.shape[2]
    padded = torch.cat([query.new_zeros(2, 4, missing, 8), query], dim=2)
    heads = [
        [
            attention_by_loop(
                padded[k, h], key[k, h // 2], value[k, h // 2], causal=causal, window=window, softcap=softcap
            )
            for h in range(4)
        ]
        for k in range(2)
    ]
    return torch.stack([torch.stack(own) for own in heads])[:, :, missing:]


@pytest.fixture
def written_out(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let small scores be written out too, three heads' at a time; counts the products."""
    counted: list[int] = []
    scores = AttentionRule._scores

    def count(rule: AttentionRule, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
        counted.append(len(query))
        return scores(rule, query, key, bias)

    monkeypatch.setattr(AttentionRule, "_scores", count)
    monkeypatch.setattr(attention_rule, "_FEWEST_SCORES", 1)
    monkeypatch.setattr(attention_rule, "SCORES_AT_ONCE", 3 * 2 * 9 * 9)
    return counted


@pytest.mark.parametrize(
    ("causal", "softcap"), [(False, None), (False, 1.5), (True, 1.5)], ids=["encoder", "capped", "causal and capped"]
)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("queries", [9, 4, 1])
def test_bf16_on_a_cpu_is_written_out_and_equals_a_loop(
    written_out: list[int], causal: bool, window: int | None, softcap: float | None, queries: int
) -> None:
    qkv = inputs(queries, 9, torch.bfloat16)
    with torch.no_grad():
        out = AttentionRule(causal, None, window, softcap)(*qkv)
    assert sum(written_out) == 4  # key heads of both members
    assert len(written_out) == (2 if queries == 9 else 1)
    assert out.dtype == torch.bfloat16
    expected = by_loop(qkv, causal=causal, window=window, softcap=softcap)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=WRITTEN_OUT)


def test_scores_are_scaled_before_they_are_rounded(written_out: list[int]) -> None:
    """A scaling that bf16 cannot hold, 32^-0.5, would be off by 0.2 % in every score if it were rounded first."""
    query, key, value = (torch.full((1, 1, 2, 32), number, dtype=torch.bfloat16) for number in (1.0, 1.0, 1.0))
    rule = AttentionRule(False, 32**-0.5, None, None)
    with torch.no_grad():
        rule(query, key, value)
        scores = rule._scores(query[0], key[0].transpose(1, 2), None)
    assert scores.unique().tolist() == [float(torch.tensor(32 * 32**-0.5, dtype=torch.bfloat16))]
    assert written_out


@pytest.mark.parametrize(
    ("dtype", "keys", "causal", "grad"),
    [
        (torch.float32, 9, False, False),  # SDPA is as fast
        (torch.bfloat16, 9, False, True),  # scores would be kept for the backward pass
        (torch.bfloat16, 9, True, False),  # a decoder's scores may be large
        (torch.bfloat16, 500, False, False),  # a head does not fit into the cache
    ],
)
def test_sdpa_elsewhere(written_out: list[int], dtype: torch.dtype, keys: int, causal: bool, grad: bool) -> None:
    qkv = inputs(2, keys, dtype)
    with torch.set_grad_enabled(grad):
        out = AttentionRule(causal, None, None, None)(*qkv)
    assert not written_out
    expected = by_loop(qkv, causal=causal, window=None, softcap=None)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else FUSED)


def test_large_scores_of_a_decoder_are_not_rounded() -> None:
    """Keys with a common offset, as biases of Qwen 2 make: it changes no probability, and would swallow the scores."""
    query, key, value = (draw(1, 4, 128, 64) for _ in range(3))
    query[..., 0], key[..., 0] = 50.0, 50.0
    qkv = tuple(tensor.to(torch.bfloat16) for tensor in (query, key, value))
    with torch.no_grad():
        out = AttentionRule(True, None, None, None)(*qkv)
    exact = AttentionRule(True, None, None, None)(*(tensor.double() for tensor in qkv))
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=FUSED)


def test_few_scores_are_left_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttentionRule, "_written_out", lambda *_: pytest.fail("written out"))
    with torch.no_grad():
        AttentionRule(False, None, None, None)(*inputs(9, 9, torch.bfloat16))
