"""The processes that train together: each takes a share of every batch, and gradients are averaged.

    gradients of one share  --mean_-->  gradients of the batch

One process needs nothing of it. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor


class Workers(Protocol):
    """index: this process's number, from 0; num: how many there are."""

    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def num(self) -> int: ...  # noqa: D102
    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its mean over the workers."""


class OneWorker:
    """A process of its own."""

    index = 0
    num = 1

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Nothing to average with."""


class AccelerateWorkers:
    """The processes that `accelerate launch` started.

    Args:
        accelerator: of accelerate.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.index: int = accelerator.process_index
        self.num: int = accelerator.num_processes

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its mean over the processes."""
        if self.num == 1:
            return
        for tensor in tensors:
            here = tensor.to(self._accelerator.device)
            tensor.copy_(self._accelerator.reduce(here, reduction="mean"))
