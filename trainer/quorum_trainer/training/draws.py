"""How members begin: adapters and heads drawn from each member's own random stream.

    seeds  --draw_adapter, draw_head-->  initial states

Knows nothing of data, losses or what follows.
"""

from __future__ import annotations

import hashlib
import math
import re

import torch
from torch import Tensor, nn

from quorum_model.adapters import LoraWeights
from quorum_model.backbone import Backbone
from quorum_model.folded import features_of, is_linear
from quorum_trainer.config import ConfigError, Layers, LoraOptions

_FRACTIONS = {"all": 1.0, "top-half": 1 / 2, "top-third": 1 / 3, "top-sixth": 1 / 6}


def adapted_modules(backbone: Backbone, layers: Layers) -> list[str]:
    """Names of the linear layers that get an adapter.

    Args:
        backbone: whose body is searched.
        layers: all, a top fraction by name or number (rounded up), or a list of layer indices from the bottom.

    Raises:
        ConfigError: a layer index that the backbone does not have, or no layer that could be adapted.
    """
    count = int(backbone.body.config.get_text_config().num_hidden_layers)
    if isinstance(layers, str | float):
        fraction = _FRACTIONS[layers] if isinstance(layers, str) else layers
        # 6 layers times the float nearest to 1/3 must be 2 layers, not 3.
        chosen = set(range(count - math.ceil(round(count * fraction, 9)), count))
    else:
        chosen = set(layers)
        if not chosen <= set(range(count)):
            raise ConfigError(f"layers: this backbone has layers 0 to {count - 1}")
    names = []
    for name, module in backbone.body.named_modules():
        index = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
        if is_linear(module) and index is not None and int(index.group(1)) in chosen:
            names.append(f"{backbone.body_prefix}.{name}")
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
    """A fresh head: what the checkpoint holds of it is kept, the rest is drawn N(0, initializer_range), biases zero.

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
        tensor = parameter.detach().clone()
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
