"""One Linear for K members at once: the base product over all rows, then each member's low-rank update by bmm.

    x (K, T, d_in)  --(x A) B, batched over members-->  --+ x W, one product over all rows-->  (K, T, d_out)

Arithmetic of LoRA (arXiv 2106.09685) without a loop over members and without a gather. The same layer serves and
trains. Knows nothing of attention, packing, heads or files.

In bf16 the order matters. What is added to a product that is rounded already is lost where it is below half of the
product's last bit, and an update often is: always in the same direction, member by member, which is what an ensemble's
std consists of. So the product is accumulated onto the update, in fp32, and the bias comes after both.

Shapes: `K` members, `T` packed tokens, `d_in`/`d_out` features, `r` the largest rank of any member (smaller ranks are
padded with zeros, which is exact).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

InputDropout = Callable[[Tensor, slice], Tensor]
"""Dropout on the adapter's input: (K, T, d_in) and which members they are -> (K, T, d_in), a random stream a member."""

ALL_MEMBERS = slice(None)


class FoldedLinear(nn.Module):
    """A frozen or trained base layer plus K low-rank updates: `base(x) + scaling_k * (x A_k) B_k`.

    Args:
        base: Linear or Conv1D of Transformers; anything that maps (..., d_in) to (..., d_out).
        a: (K, d_in, r), the transposed `lora_A` weights.
        b: (K, r, d_out), the transposed `lora_B` weights.
        scaling: (K,), alpha / r of each member (or alpha / sqrt(r), rsLoRA).

    The input has K rows (one a member), or one row that all members share: then the base product is done once.
    """

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor, scaling: Tensor) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(b)
        # Kept out of B: multiplying it in would change Adam's trajectory relative to one PEFT model at a time.
        # In at least fp32, whatever the weights are in.
        self.register_buffer("scaling", scaling.reshape(-1, 1, 1), persistent=False)
        self.scaling: Tensor
        self.input_dropout: InputDropout | None = None
        self.only_member: int | None = None
        """When set, the layer is that member's alone, for any batch shape: how unpackable backbones are run."""
        self.members: slice = ALL_MEMBERS
        """The members that run: training takes some at a time where memory is short."""
        self.num_members: int = a.shape[0]
        """K, of those that run; counted when they are set, since a compiled layer cannot count a slice."""

    def forward(self, x: Tensor) -> Tensor:
        """(K, T, d_in) or (1, T, d_in) -> (K, T, d_out); with `only_member`, (..., d_in) -> (..., d_out)."""
        if self.only_member is not None:
            return self._forward_one(x, self.only_member)
        members = self.num_members
        if x.dim() != 3 or x.shape[0] not in (1, members):
            raise RuntimeError(f"folded layer of {members} members got an input of shape {tuple(x.shape)}")
        shared = members > 1 and (x.shape[0] == 1 or x.stride(0) == 0)
        row = x[:1] if shared else x
        x = row.expand(members, -1, -1)
        adapter_input = x if self.input_dropout is None else self.input_dropout(x, self.members)
        is_coarse = x.element_size() < 4  # in fp32 nothing is lost that anybody could see
        if is_coarse and not shared and not torch.is_grad_enabled() and is_plain_linear(self.base):
            return self._accumulate(x, self._low(adapter_input, x.dtype))
        # Rows that all members share are multiplied once, and so before there is an update.
        y = self.base(row).expand(members, -1, -1)
        return torch.baddbmm(y, self._low(adapter_input, y.dtype), self.b[self.members].to(y.dtype))

    def _low(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(K, T, d_in) -> (K, T, r). Adapters are trained in fp32 over a base in bf16: small steps are not lost."""
        return (torch.bmm(x, self.a[self.members].to(x.dtype)) * self.scaling[self.members]).to(dtype)

    def _accumulate(self, x: Tensor, low: Tensor) -> Tensor:
        """The base product added to the updates before it is rounded."""
        base: Any = self.base
        b = self.b[self.members].to(low.dtype)
        weight = base.weight.t() if isinstance(base, nn.Linear) else base.weight
        accumulate = compiled_accumulate if torch.compiler.is_compiling() else accumulate_product
        y: Tensor = accumulate(low, b, x, weight)
        # Last: an update added to a large bias would be lost as in a large product, and the bias is the same for all.
        return y if base.bias is None else y.add_(base.bias)

    def _forward_one(self, x: Tensor, member: int) -> Tensor:
        y: Tensor = self.base(x)
        low = (x @ self.a[member].to(x.dtype)) * self.scaling[member]
        return y + low.to(y.dtype) @ self.b[member].to(y.dtype)


def accumulate_product(low: Tensor, b: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`low` (K, T, r) B (K, r, d_out) + x (K, T, d_in) W (d_in, d_out), rounded to the update and then to the sum."""
    y = torch.bmm(low, b)
    y.view(-1, y.shape[2]).addmm_(x.reshape(-1, x.shape[2]), weight)
    return y


# A compiler would copy the update before it adds to it, or add it to a product that is rounded already.
compiled_accumulate = torch.library.custom_op("quorum::accumulate_product", accumulate_product, mutates_args=())


@compiled_accumulate.register_fake
def _shape_of_product(low: Tensor, b: Tensor, _x: Tensor, _weight: Tensor) -> Tensor:
    return low.new_empty(low.shape[0], low.shape[1], b.shape[2])


def features_of(base: nn.Module) -> tuple[int, int]:
    """(d_in, d_out) of a Linear or of Transformers' Conv1D."""
    if isinstance(base, nn.Linear):
        return base.in_features, base.out_features
    weight = base.weight
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise TypeError(f"{type(base).__name__} is not a linear layer")
    return weight.shape[0], weight.shape[1]


def is_linear(module: nn.Module) -> bool:
    """Whether an adapter can sit on this module: a routing layer, say, is a Linear by class but not by what it does."""
    if type(module).__name__ in ("Conv1D", "Linear4bit"):  # of Transformers; of bitsandbytes
        return True
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def is_plain_linear(module: nn.Module) -> bool:
    """Whether it is x W + bias and nothing else: the Linear of torch or the Conv1D of Transformers, unquantised."""
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def fold_into(root: nn.Module, layers: dict[str, FoldedLinear]) -> None:
    """Replace the modules of `root` named in `layers` by their folded layers, in place."""
    for name, layer in layers.items():
        parent_name, _, attribute = name.rpartition(".")
        setattr(root.get_submodule(parent_name), attribute, layer)


def expand_before(root: nn.Module, first_folded: str) -> None:
    """Where one shared row becomes K: a hook on the parent of the first folded layer in execution order.

    Below it every member sees the same activations, so they are computed once (the trunk). The parent, not the whole
    layer around it: residual, norm and rotary embeddings stay a single row and broadcast, and the expanded row keeps
    stride 0 up to the first folded layers, whose base products are then done once too.
    """
    parent = root.get_submodule(first_folded.rpartition(".")[0])
    layer = root.get_submodule(first_folded)
    assert isinstance(layer, FoldedLinear)

    def expand(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        if layer.only_member is not None:
            return args, kwargs
        if args and isinstance(args[0], Tensor):
            return (_expand_row(args[0], layer.num_members), *args[1:]), kwargs
        if isinstance(kwargs.get("hidden_states"), Tensor):
            return args, {**kwargs, "hidden_states": _expand_row(kwargs["hidden_states"], layer.num_members)}
        raise RuntimeError(f"cannot tell the activations that enter {first_folded}")

    parent.register_forward_pre_hook(expand, with_kwargs=True)


def _expand_row(hidden: Tensor, members: int) -> Tensor:
    return hidden.expand(members, -1, -1) if hidden.dim() == 3 and hidden.shape[0] == 1 else hidden


def set_members(layers: Iterable[FoldedLinear], members: slice) -> None:
    """Let only these members run."""
    for layer in layers:
        layer.members = members
        layer.num_members = len(range(*members.indices(layer.a.shape[0])))


def set_only_member(layers: Iterable[FoldedLinear], member: int | None) -> None:
    """Make every layer that member's alone, or (None) all members' again."""
    for layer in layers:
        layer.only_member = member
