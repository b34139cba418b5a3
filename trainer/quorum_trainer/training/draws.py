"""How members begin: adapters and heads drawn from each member's own random stream.

    seeds  --draw_adapter, draw_head-->  initial states

Knows nothing of data, losses or what follows.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from quorum_model.adapters import LoraWeights
from quorum_model.backbone import Backbone
from quorum_model.folded import features_of
from quorum_model.layers import TOP_FRACTIONS, linears_by_layer, num_layers, top_layers
from quorum_trainer.config import ConfigError, Layers, LoraOptions


def adapted_modules(backbone: Backbone, layers: Layers) -> list[str]:
    """Names of the linear layers that get an adapter.

    Args:
        backbone: whose body is searched.
        layers: all, a top fraction by name or number (rounded up), or a list of layer indices from the bottom.

    Raises:
        ConfigError: a layer index that the backbone does not have, or no layer that could be adapted.
    """
    count = num_layers(backbone)
    if isinstance(layers, str | float):
        chosen = set(top_layers(count, TOP_FRACTIONS[layers] if isinstance(layers, str) else layers))
    else:
        chosen = set(layers)
        if not chosen <= set(range(count)):
            raise ConfigError(f"layers: this backbone has layers 0 to {count - 1}")
    names = [name for layer, linears in linears_by_layer(backbone).items() if layer in chosen for name in linears]
    if not names:
        raise ConfigError("layers: this backbone has no linear layers of its own there (does it share its layers?)")
    return names


def draw_adapter(backbone: Backbone, options: LoraOptions, generator: torch.Generator) -> dict[str, LoraWeights]:
    """A fresh adapter as PEFT draws it: A uniform by Kaiming (a = sqrt 5), B zero (arXiv 2106.09685, section 4.1)."""
    modules = dict(backbone.model.named_modules())
    adapter = {}
    for name in adapted_modules(backbone, options.layers):
        d_in, d_out = features_of(modules[name])
        a = torch.empty(options.rank, d_in)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        adapter[name] = LoraWeights(a, torch.zeros(d_out, options.rank), options.alpha / options.rank)
    return adapter


def draw_head(backbone: Backbone, generator: torch.Generator, *, redraw_projection: bool) -> dict[str, Tensor]:
    """A fresh head, on the CPU: what the checkpoint holds is kept, the rest drawn N(0, initializer_range), biases zero.

    Args:
        backbone: whose head it is.
        generator: the member's stream.
        redraw_projection: draw the last layer in any case. Heads that begin equal and see the same data on the same
            backbone would stay equal; members with adapters of their own differ anyway, and gain by a trained head.
    """
    std = float(getattr(backbone.model.config, "initializer_range", 0.02))
    projection = [name for name, _ in backbone.head.named_parameters()][-1].rpartition(".")[0]
    state = {}
    for name, parameter in backbone.head.named_parameters():
        public = backbone.head.public_name(name)
        tensor = parameter.detach().cpu().clone()  # where streams draw the same numbers on every machine
        if public in backbone.new_parameters or (redraw_projection and name.rpartition(".")[0] == projection):
            if tensor.dim() > 1:
                tensor.normal_(0.0, std, generator=generator)
            elif name.endswith("bias"):
                tensor.zero_()  # and a norm's weight stays 1
        state[public] = tensor
    return state


def stream_seed(*names: str | int) -> int:
    """The seed of a random stream, by its names: no two streams of a run, and none of two runs, share their numbers."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes 63 bits
