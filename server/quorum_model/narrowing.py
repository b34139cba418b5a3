"""The last layer computes only what pooling takes: the rest of it works on one token a sequence.

    the last layer  --LastLayer.find_modules-->  what of it is narrowed  --narrowing (one forward pass)-->  less to do

Keys and values are needed of every token; queries, the output projection and the feed-forward part only of the token
that is pooled. Which modules of a layer those are is found out, not known by name: a module is narrowed where NaN in
all other tokens of its output leaves the pooled tokens as they were, so that what depends on another token is noticed
however small its part. Knows nothing of adapters, members or heads.

Shapes: `K` rows, `T` packed tokens, `N` sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quorum_model.packing import PACKING_KEYWORD, Narrowed, PackedBatch, Packing, pooled_tokens


class LastLayer:
    """The last layer of a body, and what of it is narrowed while `narrowing` is open.

    Args:
        layer: called once a forward pass.
        pooling: which token of a sequence is taken.
    """

    def __init__(self, layer: nn.Module, pooling: Literal["last", "first"]) -> None:
        self.layer = layer
        self._pooling: Literal["last", "first"] = pooling
        self._current: tuple[Narrowed, int] | None = None
        self._ran: set[nn.Module] = set()
        self.narrowed_modules: list[str] = []
        layer.register_forward_pre_hook(self._enter, with_kwargs=True)

    @contextmanager
    def narrowing(self, batch: PackedBatch, fill: float = 0.0) -> Iterator[None]:
        """Narrow the layer for one forward pass over a batch of a single row."""
        tokens = torch.tensor(pooled_tokens(batch.packing, self._pooling)[0], device=batch.input_ids.device)
        self._current = Narrowed(tokens, fill), batch.input_ids.shape[1]
        try:
            yield
        finally:
            self._current = None

    def _enter(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        packing = kwargs.get(PACKING_KEYWORD)
        if self._current is not None and isinstance(packing, Packing):
            packing.narrowed = self._current[0]

    def find_modules(self, batch: PackedBatch, run: Callable[[], object]) -> None:
        """Try every module of the layer, the largest first; keep those that can be narrowed.

        Args:
            batch: a few short sequences in one row.
            run: the forward pass over `batch`.
        """
        args, kwargs = self._arguments_of(run)
        expected = self._pooled(args, kwargs, batch)
        waiting = list(self.layer.named_children())
        while waiting:
            name, module = waiting.pop(0)
            if next(module.parameters(), None) is None:
                continue  # nothing to save
            handles = [
                module.register_forward_pre_hook(self._gather, with_kwargs=True),
                module.register_forward_hook(self._scatter),
            ]
            self._ran.clear()
            # One that did not run (its weight may be read instead) changed nothing, and proves nothing.
            if self._is_unchanged(args, kwargs, batch, expected) and module in self._ran:
                self.narrowed_modules.append(name)
                continue
            for handle in handles:
                handle.remove()
            waiting.extend((f"{name}.{inner}", child) for inner, child in module.named_children())

    def _arguments_of(self, run: Callable[[], object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        handle = self.layer.register_forward_pre_hook(
            lambda _m, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
        )
        run()
        handle.remove()
        if len(seen) != 1:
            raise RuntimeError(f"the last layer ran {len(seen)} times in one forward pass")
        return seen[0]

    def _pooled(self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: PackedBatch) -> Tensor:
        out = self.layer(*args, **{**kwargs, PACKING_KEYWORD: Packing(batch.packing.rows)})
        hidden: Tensor = out if isinstance(out, Tensor) else out[0]
        return hidden[:, pooled_tokens(batch.packing, self._pooling)[0]]

    def _is_unchanged(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: PackedBatch, expected: Tensor
    ) -> bool:
        try:
            with self.narrowing(batch, float("nan")):
                actual = self._pooled(args, kwargs, batch)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False  # it takes or gives something else than a vector a token
        # Products of other shapes round differently; dependence would be NaN.
        difference = (actual - expected).norm() / expected.norm()
        return bool(difference <= torch.finfo(expected.dtype).eps ** 0.5)

    def _gather(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._current is None:
            return None
        self._ran.add(module)
        narrowed, width = self._current

        def take(value: Any) -> Any:
            if isinstance(value, Tensor) and value.dim() == 3 and value.shape[1] == width:
                return value.index_select(1, narrowed.tokens)
            return value

        return tuple(take(value) for value in args), {name: take(value) for name, value in kwargs.items()}

    def _scatter(self, _module: nn.Module, _args: tuple[Any, ...], out: Any) -> Tensor | None:
        if self._current is None:
            return None
        narrowed, width = self._current
        if not isinstance(out, Tensor) or out.dim() != 3 or out.shape[1] != len(narrowed.tokens):
            raise TypeError("not a vector a token")
        whole = out.new_full((out.shape[0], width, out.shape[2]), narrowed.fill)
        return whole.index_copy_(1, narrowed.tokens, out)
