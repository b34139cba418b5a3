"""One Linear for K members at once: the base product over all rows, then each member's low-rank update by bmm.

    x (K, T, d_in)  --base-->  (K, T, d_out)  --+ (x A) B, batched over members-->  (K, T, d_out)

Arithmetic of LoRA (arXiv 2106.09685) without a loop over members and without a gather. The same layer serves and
trains. Knows nothing of attention, packing, heads or files.

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

    @property
    def num_members(self) -> int:
        """K, of those that run."""
        return len(range(*self.members.indices(self.a.shape[0])))

    def forward(self, x: Tensor) -> Tensor:
        """(K, T, d_in) or (1, T, d_in) -> (K, T, d_out); with `only_member`, (..., d_in) -> (..., d_out)."""
        if self.only_member is not None:
            return self._forward_one(x, self.only_member)
        members = self.num_members
        if x.dim() != 3 or x.shape[0] not in (1, members):
            raise RuntimeError(f"folded layer of {members} members got an input of shape {tuple(x.shape)}")
        shared = members > 1 and (x.shape[0] == 1 or x.stride(0) == 0)
        if shared:
            y = self.base(x[:1]).expand(members, -1, -1)
            x = x[:1].expand(members, -1, -1)
        else:
            y = self.base(x)
        adapter_input = x if self.input_dropout is None else self.input_dropout(x, self.members)
        # In training adapters stay in fp32 over a base in bf16: rounded here, so that small steps are not lost.
        a, b = self.a[self.members].to(x.dtype), self.b[self.members].to(y.dtype)
        low = (torch.bmm(adapter_input, a) * self.scaling[self.members]).to(y.dtype)
        if shared or torch.is_grad_enabled():
            return torch.baddbmm(y, low, b)
        result: Tensor = y.baddbmm_(low, b)
        return result

    def _forward_one(self, x: Tensor, member: int) -> Tensor:
        y: Tensor = self.base(x)
        low = (x @ self.a[member].to(x.dtype)) * self.scaling[member]
        return y + low.to(y.dtype) @ self.b[member].to(y.dtype)


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


def set_only_member(layers: Iterable[FoldedLinear], member: int | None) -> None:
    """Make every layer that member's alone, or (None) all members' again."""
    for layer in layers:
        layer.only_member = member
