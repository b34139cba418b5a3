"""Packing and pooling against plain loops, one sequence at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from quorum_model.packing import Packing, lay_out, pack, packing_of, pool
from quorum_model.prefixes import share_prefixes

LENGTHS = [[3, 7, 1, 12], [5, 2, 9, 4]]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_pack_lays_sequences_end_to_end() -> None:
    batch = pack([[[11, 12], [13, 14, 15]], [[21], [22]]], position_offset=2, pad_id=9)
    assert batch.input_ids.tolist() == [[11, 12, 13, 14, 15], [21, 22, 9, 9, 9]]
    assert batch.position_ids.tolist() == [[2, 3, 2, 3, 4], [2, 2, 2, 2, 2]]
    assert [row.spans for row in batch.packing.rows] == [((0, 2), (2, 5)), ((0, 1), (1, 2))]


@pytest.mark.parametrize("rows", [[], [[]], [[[1], []]], [[[1]], [[1], [2]]]])
def test_pack_refuses_what_has_no_meaning(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"every row|max"):
        pack(rows)


@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS[:1]], ids=["own", "shared"])
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_pool_equals_a_loop(lengths: list[list[int]], pooling: Any) -> None:
    hidden = draw(2, max(map(sum, lengths)), 6)
    packing = packing_of(lengths)
    actual = pool(hidden, packing, pooling)
    for row in range(2):
        for index, (start, end) in enumerate(packing.rows[row if len(lengths) > 1 else 0].spans):
            tokens = hidden[row, start:end]
            expected = {"first": tokens[0], "last": tokens[-1], "mean": tokens.sum(0) / (end - start)}[pooling]
            torch.testing.assert_close(actual[row, index], expected, rtol=1e-12, atol=1e-12)


# Two prompts with two and one answers, one answer that is a prompt alone, and a text of its own.
FAMILY = [[1, 2, 3, 4, 10, 11], [1, 2, 3, 4, 12], [1, 2, 3, 4], [5, 6, 7, 8, 9], [1, 2, 30, 31]]


def test_a_shared_prefix_lies_there_once() -> None:
    forest = share_prefixes(FAMILY, min_shared=2)
    batch = pack([forest], position_offset=2)
    layout = batch.packing.rows[0]
    assert (
        batch.input_ids.shape[1]
        == forest.num_tokens
        == len({tuple(s[:n]) for s in FAMILY for n in range(1, len(s) + 1)})
    )
    for index, sequence in enumerate(FAMILY):
        places = [place for start, end in layout.spans_of(index) for place in range(start, end)]
        assert batch.input_ids[0, places].tolist() == sequence
        assert batch.position_ids[0, places].tolist() == list(range(2, 2 + len(sequence)))


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_pooling_a_shared_prefix_equals_a_loop(pooling: Any) -> None:
    layout = lay_out(share_prefixes(FAMILY, min_shared=2))
    hidden = draw(3, layout.num_tokens, 6)
    actual = pool(hidden, Packing([layout]), pooling)
    for index in range(len(FAMILY)):
        tokens = hidden[:, [place for start, end in layout.spans_of(index) for place in range(start, end)]]
        expected = {"first": tokens[:, 0], "last": tokens[:, -1], "mean": tokens.mean(dim=1)}[pooling]
        torch.testing.assert_close(actual[:, index], expected, rtol=1e-12, atol=1e-12)
