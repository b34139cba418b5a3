"""Attention over packed sequences against a loop over heads, sequences and positions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from quorum_model import attention as attention_module
from quorum_model import varlen
from quorum_model.attention import attend
from quorum_model.model import EnsembleModel
from quorum_model.packing import PACKING_KEYWORD, Narrowed, Packing, lay_out, packing_of, pooled_tokens
from quorum_model.passes import continue_from
from quorum_model.prefix_store import PrefixStore
from quorum_model.prefixes import share_prefixes
from tests.model.test_packing import FAMILY, LENGTHS, draw
from tests.reference.tiny_models import ARCHITECTURES, make_backbone, random_member, random_sequences


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
    packing = packing_of(lengths)
    width = max(map(sum, lengths))
    query, key, value = draw(2, 4, width, 8), draw(2, 2, width, 8) + 0.1, draw(2, 2, width, 8) - 0.1  # grouped queries
    module: Any = SimpleNamespace(is_causal=causal)
    out, _ = attend(
        module, query, key, value, None, sliding_window=window, softcap=softcap, **{PACKING_KEYWORD: packing}
    )
    assert out.shape == (2, width, 4, 8)
    for row in range(2):
        for start, end in packing.rows[row if len(lengths) > 1 else 0].spans:
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
        attend(torch.nn.Module(), query, query, query, mask, **{PACKING_KEYWORD: packing_of([[3]]), **wrong})


def test_attention_without_its_packing_is_refused() -> None:
    query = draw(1, 4, 3, 8)
    with pytest.raises(RuntimeError, match="without its packing"):
        attend(torch.nn.Module(), query, query, query, None)


def places_of(packing: Packing, sequence: int) -> list[int]:
    return [place for start, end in packing.rows[0].spans_of(sequence) for place in range(start, end)]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("rows", [1, 2])
def test_attention_behind_a_shared_prefix_equals_a_loop(window: int | None, softcap: float | None, rows: int) -> None:
    packing = Packing([lay_out(share_prefixes(FAMILY, min_shared=2))])
    width = packing.rows[0].num_tokens
    query, key, value = draw(rows, 4, width, 8), draw(rows, 2, width, 8) + 0.1, draw(rows, 2, width, 8) - 0.1
    module: Any = SimpleNamespace(is_causal=True)
    out, _ = attend(
        module, query, key, value, None, sliding_window=window, softcap=softcap, **{PACKING_KEYWORD: packing}
    )
    check_sequences(out, (query, key, value), packing, causal=True, window=window, softcap=softcap)


def check_sequences(out: Tensor, qkv: tuple[Tensor, Tensor, Tensor], packing: Packing, **rule: Any) -> None:
    """Every token of every sequence of a one-row packing, against the loop over the whole sequence."""
    query, key, value = qkv
    for sequence in range(len(packing.rows[0].paths)):
        places = places_of(packing, sequence)
        for row in range(query.shape[0]):
            for head in range(4):
                expected = attention_by_loop(
                    query[row, head, places], key[row, head // 2, places], value[row, head // 2, places], **rule
                )
                torch.testing.assert_close(out[row, places, head], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("causal", "pooling"), [(True, "last"), (False, "first"), (False, "last")])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_a_narrowed_layer_computes_the_pooled_tokens_and_no_other(
    causal: bool, pooling: Any, window: int | None, softcap: float | None
) -> None:
    layout = lay_out(share_prefixes(FAMILY, min_shared=2 if causal else 100))
    width = layout.num_tokens
    query, key, value = draw(2, 4, width, 8), draw(2, 2, width, 8), draw(2, 2, width, 8)
    module: Any = SimpleNamespace(is_causal=causal)

    def run(packing: Packing) -> Tensor:
        options: Any = {"sliding_window": window, "softcap": softcap, PACKING_KEYWORD: packing}
        return attend(module, query, key, value, None, **options)[0]

    whole = run(Packing([layout]))
    narrow = Packing([layout])
    tokens = torch.tensor(pooled_tokens(narrow, pooling)[0])
    narrow.narrowed = Narrowed(tokens, float("nan"))
    actual = run(narrow)
    torch.testing.assert_close(actual[:, tokens], whole[:, tokens], rtol=1e-12, atol=1e-12)
    others = [place for place in range(width) if place not in tokens.tolist()]
    assert actual[:, others].isnan().all()


def flash_varlen(
    query: Tensor, key: Tensor, value: Tensor, query_ends: Tensor, key_ends: Tensor, longest_query: int,
    longest_key: int, *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool, num_splits: int,
) -> Tensor:  # fmt: skip
    """What FlashAttention's variable-length call computes, one query at a time; the last query meets the last key."""
    assert enable_gqa == (key.shape[1] != query.shape[1])
    assert num_splits == 1
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert longest_query == int(query_ends.diff().max())
    assert longest_key == int(key_ends.diff().max())
    left, right = window_size
    out = torch.zeros(query.shape[0], query.shape[1], value.shape[2], dtype=query.dtype)
    for (a, b), (c, d) in zip(
        zip(query_ends[:-1].tolist(), query_ends[1:].tolist(), strict=True),
        zip(key_ends[:-1].tolist(), key_ends[1:].tolist(), strict=True),
        strict=True,
    ):
        for i in range(b - a):
            place = (d - c) - (b - a) + i
            low = 0 if left < 0 else max(0, place - left)
            high = d - c if right < 0 else min(d - c, place + right + 1)
            for head in range(query.shape[1]):
                group = head * key.shape[1] // query.shape[1]
                keys, values = key[c + low : c + high, group], value[c + low : c + high, group]
                weights = torch.softmax(keys @ query[a + i, head] * (scale or query.shape[2] ** -0.5), dim=0)
                out[a + i, head] = weights @ values
    return out


@pytest.fixture
def varlen_by_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA path on a CPU: everything of it but the kernel."""
    monkeypatch.setattr(varlen, "varlen_attn", flash_varlen)
    monkeypatch.setattr(attention_module, "can_attend_varlen", lambda _query: True)


@pytest.mark.usefixtures("varlen_by_loop")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS[:1]], ids=["own", "shared"])
def test_the_cuda_path_equals_a_loop(causal: bool, window: int | None, lengths: list[list[int]]) -> None:
    test_attention_equals_a_loop(causal, window, None, lengths)


@pytest.mark.usefixtures("varlen_by_loop")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_cuda_path_behind_a_shared_prefix_equals_a_loop(window: int | None, rows: int) -> None:
    test_attention_behind_a_shared_prefix_equals_a_loop(window, None, rows)


@pytest.mark.usefixtures("varlen_by_loop")
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
def test_the_cuda_path_goes_on_from_stored_beginnings(name: str) -> None:
    """Against the CPU path, which is tested against PEFT."""
    backbone = make_backbone(next(a for a in ARCHITECTURES if a.name == name), torch.float64)
    members = [random_member(backbone, rank=4, seed=index) for index in range(3)]
    model = EnsembleModel(backbone, [m.lora for m in members], [m.head for m in members], "last").eval()
    prompt = random_sequences([66], seed=7)[0]
    sequences = [prompt + answer for answer in random_sequences([4, 9, 2], seed=8)]
    with torch.inference_mode():
        expected = torch.cat([model([[sequence]]) for sequence in sequences], dim=1)
        store = PrefixStore(2**30)
        first, new = continue_from(store, sequences[:1])
        scores = [model([first])]
        store.put(new)
        forest, _ = continue_from(store, sequences[1:])
        scores.append(model([forest]))
    assert forest.num_tokens == 2 + 9 + 2 + 2  # two tokens of the prompt are behind its block, too few to share
    torch.testing.assert_close(torch.cat(scores, dim=1), expected, rtol=1e-9, atol=1e-9)
