"""How many floating-point operations scores need: what a time is compared with, counted and not measured.

    backbone        --layer_shapes-->            LayerShape a layer
    lengths         --separate, with_prefix-->   Extent
    shapes, extent  --count_flops-->             Flops

Counted are the body's linear layers and the two products of attention; a multiply-add is two operations. Not counted
are adapters, heads, embeddings, norms and activations: what the ensemble's models themselves do, and not what it
costs to adapt them. Under a causal mask only visible pairs of tokens are counted (about half). Knows no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quorum_model.backbone import Backbone
from quorum_model.errors import Unsupported
from quorum_model.folded import features_of
from quorum_model.layers import linears_by_layer
from quorum_model.packing import Pooling

_QUERIES = frozenset({"query", "q_proj", "q_lin"})
_KEYS_AND_VALUES = frozenset({"key", "k_proj", "k_lin", "value", "v_proj", "v_lin"})
_FUSED = frozenset({"Wqkv", "c_attn", "qkv_proj", "query_key_value", "qkv"})


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Multiply-adds of one transformer layer.

    query, keys_and_values, rest: of its linear layers, a token. attention: of one product, a visible pair of tokens
    (heads times head size).
    """

    query: int
    keys_and_values: int
    rest: int
    attention: int


@dataclass(frozen=True, slots=True)
class Extent:
    """What has to be computed of a set of sequences, once.

    tokens, pairs: tokens, and pairs of a token with one that it sees. last_tokens, last_pairs: the same for the
    queries of the last layer, which are those of pooled tokens where one token is pooled; its keys and values are of
    all tokens.
    """

    tokens: int
    pairs: int
    last_tokens: int
    last_pairs: int


@dataclass(frozen=True, slots=True)
class Flops:
    """linears, attention: operations.

    repeated_inputs: the part of `linears` that is the first adapted layer's queries, keys and values beyond once:
    their input is the same for every member, so that an engine that adds updates to a base product computes them once.
    """

    linears: int
    attention: int
    repeated_inputs: int

    @property
    def total(self) -> int:
        """All operations, the layers above the trunk once a member."""
        return self.linears + self.attention

    @property
    def least(self) -> int:
        """`total` without what an engine can leave out by sharing the first adapted layer's inputs."""
        return self.total - self.repeated_inputs


def layer_shapes(backbone: Backbone) -> list[LayerShape]:
    """The shape of every transformer layer, from the bottom.

    Raises:
        Unsupported: a backbone whose work is not said by its linear layers and full attention: sliding windows,
            experts, or projections of unknown names.
    """
    config = backbone.body.config.get_text_config()
    # Mixtures of experts compute a part of their weights; a window hides pairs that are counted here.
    for option in ("sliding_window", "local_attention", "num_local_experts", "num_experts"):
        if getattr(config, option, None):
            raise Unsupported(f"operations are not counted for a backbone with {option}")
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    modules = dict(backbone.model.named_modules())
    layers = linears_by_layer(backbone)
    return [
        _layer_shape({name: features_of(modules[name]) for name in layers[index]}, width) for index in sorted(layers)
    ]


def _layer_shape(linears: dict[str, tuple[int, int]], width: int) -> LayerShape:
    query = keys_and_values = rest = 0
    for name, (d_in, d_out) in linears.items():
        role = name.rpartition(".")[2]
        if role in _QUERIES:
            query += d_in * d_out
        elif role in _KEYS_AND_VALUES:
            keys_and_values += d_in * d_out
        elif role in _FUSED:
            query += d_in * width
            keys_and_values += d_in * (d_out - width)
        else:
            rest += d_in * d_out
    if not query or not keys_and_values:
        raise Unsupported(f"operations are not counted for a layer of {', '.join(sorted(linears))}")
    return LayerShape(query, keys_and_values, rest, width)


def separate(lengths: Sequence[int], *, is_causal: bool, pooling: Pooling) -> Extent:
    """Sequences that share nothing.

    Args:
        lengths: in tokens.
        is_causal: whether a token sees only itself and those before it.
        pooling: by the mean, all tokens are needed to the end.
    """
    tokens = sum(lengths)
    pairs = sum(length * (length + 1) // 2 if is_causal else length * length for length in lengths)
    if pooling == "mean":
        return Extent(tokens, pairs, tokens, pairs)
    # The pooled token is one that sees the whole sequence.
    return Extent(tokens, pairs, len(lengths), tokens)


def with_prefix(prefix: int, suffixes: Sequence[int]) -> Extent:
    """Sequences of a causal backbone that begin with the same tokens, pooled by their last one.

    Args:
        prefix: tokens that all share.
        suffixes: of each sequence, the tokens after them.
    """
    tokens = prefix + sum(suffixes)
    pairs = prefix * (prefix + 1) // 2 + sum(prefix * own + own * (own + 1) // 2 for own in suffixes)
    return Extent(tokens, pairs, len(suffixes), sum(prefix + own for own in suffixes))


def count_flops(layers: Sequence[LayerShape], extent: Extent, *, members: int, first_adapted: int) -> Flops:
    """Operations that the scores of all members need.

    Args:
        layers: from the bottom.
        extent: of the sequences that every member scores.
        members: K.
        first_adapted: index of the lowest layer that members do not share; the number of layers where all are shared.
    """
    linears = attention = 0
    for index, layer in enumerate(layers):
        times = members if index >= first_adapted else 1
        is_last = index == len(layers) - 1
        queries, pairs = (extent.last_tokens, extent.last_pairs) if is_last else (extent.tokens, extent.pairs)
        linears += times * 2 * (queries * (layer.query + layer.rest) + extent.tokens * layer.keys_and_values)
        attention += times * 2 * 2 * pairs * layer.attention
    return Flops(linears, attention, _repeated_inputs(layers, extent, members, first_adapted))


def _repeated_inputs(layers: Sequence[LayerShape], extent: Extent, members: int, first_adapted: int) -> int:
    if first_adapted >= len(layers):
        return 0
    layer = layers[first_adapted]
    queries = extent.last_tokens if first_adapted == len(layers) - 1 else extent.tokens
    return (members - 1) * 2 * (queries * layer.query + extent.tokens * layer.keys_and_values)
