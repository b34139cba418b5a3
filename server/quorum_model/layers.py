"""A backbone's transformer layers: the modules, which linear layers are whose, and how parts of the stack are called.

    Backbone  --layer_modules-->  the layers from the bottom      --linears_by_layer-->  {layer: names}
    "top-half"  --top_layers-->  which layers

Knows nothing of adapters or members.
"""

from __future__ import annotations

import math
import re

from torch import nn

from quorum_model.backbone import Backbone
from quorum_model.folded import is_linear

TOP_FRACTIONS = {"all": 1.0, "top-half": 1 / 2, "top-third": 1 / 3, "top-sixth": 1 / 6}


def num_layers(backbone: Backbone) -> int:
    """How many transformer layers the body has."""
    return int(backbone.body.config.get_text_config().num_hidden_layers)


def layer_modules(backbone: Backbone) -> nn.ModuleList | None:
    """The body's transformer layers from the bottom, or None where they are not in one list of that length."""
    lists = [module for module in backbone.body.modules() if isinstance(module, nn.ModuleList)]
    return next((module for module in lists if len(module) == num_layers(backbone)), None)


def top_layers(count: int, fraction: float) -> range:
    """The uppermost of `count` layers that make up this fraction, rounded up."""
    # 6 layers times the float nearest to 1/3 must be 2 layers, not 3.
    return range(count - math.ceil(round(count * fraction, 9)), count)


def linears_by_layer(backbone: Backbone) -> dict[int, list[str]]:
    """Names of the body's linear layers inside the sequence-classification model, by the layer that they are part of.

    Those outside any layer (an embedding's projection) are left out.
    """
    found: dict[int, list[str]] = {}
    for name, module in backbone.body.named_modules():
        index = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
        if index is not None and is_linear(module):
            found.setdefault(int(index.group(1)), []).append(f"{backbone.body_prefix}.{name}")
    return found
