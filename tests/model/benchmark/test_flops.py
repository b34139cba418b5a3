"""Operations by hand, and by PyTorch's own counter over a plain unpadded model."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from quorum_model.benchmark.flops import Extent, LayerShape, count_flops, layer_shapes, separate, with_prefix
from quorum_model.errors import Unsupported
from tests.reference.tiny_models import ARCHITECTURES, Architecture, make_backbone, random_sequences

COUNTED = ["bert", "roberta", "distilbert", "electra", "llama", "qwen3", "gpt2"]
LENGTHS = [5, 17, 1, 9]
TWO_LAYERS = [LayerShape(query=4, keys_and_values=8, rest=10, attention=2)] * 2


def named(name: str) -> Architecture:
    return next(architecture for architecture in ARCHITECTURES if architecture.name == name)


@pytest.mark.parametrize("name", COUNTED)
def test_one_model_as_pytorch_counts_it(name: str) -> None:
    backbone = make_backbone(named(name))  # eager: its attention is two plain products, of all pairs
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for sequence in random_sequences(LENGTHS):
            backbone.body(input_ids=torch.tensor([sequence]))
    extent = separate(LENGTHS, is_causal=False, pooling="mean")
    flops = count_flops(layer_shapes(backbone), extent, members=1, first_adapted=0)
    assert flops.total == counter.get_total_flops()
    assert flops.repeated_inputs == 0


def test_extents_by_hand() -> None:
    assert separate([3, 2], is_causal=False, pooling="mean") == Extent(5, 9 + 4, 5, 9 + 4)
    assert separate([3, 2], is_causal=True, pooling="mean") == Extent(5, 6 + 3, 5, 6 + 3)
    assert separate([3, 2], is_causal=True, pooling="last") == Extent(5, 6 + 3, 2, 3 + 2)
    # Tokens p q | a b | c: p sees 1, q 2; a 3, b 4; c 3.
    assert with_prefix(2, [2, 1]) == Extent(5, 3 + 7 + 3, 2, 4 + 3)
    assert with_prefix(0, [3, 2]) == separate([3, 2], is_causal=True, pooling="last")


def test_layers_below_the_first_adapted_one_count_once() -> None:
    extent = Extent(tokens=10, pairs=30, last_tokens=10, last_pairs=30)
    linears, attention = 2 * 10 * (4 + 8 + 10), 2 * 2 * 30 * 2
    for first, layers_run in ((0, 5 + 5), (1, 1 + 5), (2, 1 + 1)):
        flops = count_flops(TWO_LAYERS, extent, members=5, first_adapted=first)
        assert (flops.linears, flops.attention) == (layers_run * linears, layers_run * attention)
        # Queries, keys and values of the first adapted layer have one input for all: four times more than once.
        assert flops.least == flops.total - (4 * 2 * 10 * (4 + 8) if first < 2 else 0)


def test_the_last_layer_needs_the_pooled_tokens_alone() -> None:
    extent = Extent(tokens=10, pairs=30, last_tokens=2, last_pairs=10)
    flops = count_flops(TWO_LAYERS, extent, members=3, first_adapted=1)
    assert flops.linears == 2 * 10 * 22 + 3 * 2 * (2 * (4 + 10) + 10 * 8)
    assert flops.attention == 4 * 30 * 2 + 3 * 4 * 10 * 2
    assert flops.repeated_inputs == 2 * 2 * (2 * 4 + 10 * 8)


def test_fused_projections_are_taken_apart() -> None:
    d = 32
    assert layer_shapes(make_backbone(named("gpt2"))) == [LayerShape(d * d, 2 * d * d, d * d + 8 * d * d, d)] * 3
    # Grouped queries: 2 key heads of 8 for 4 query heads.
    assert layer_shapes(make_backbone(named("llama")))[0] == LayerShape(d * d, 2 * d * 16, d * d + 3 * d * 48, d)


@pytest.mark.parametrize("name", ["mistral", "modernbert", "phimoe-window"])
def test_what_is_not_counted_is_refused(name: str) -> None:
    with pytest.raises(Unsupported, match="not counted"):
        layer_shapes(make_backbone(named(name)))
