"""The processes that train together: each takes a share of every batch, and gradients are averaged.

    gradients of one share  --mean_-->  gradients of the batch

One process needs nothing of it. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor


class Workers(Protocol):
    """index: this process's number, from 0; num: how many there are."""

    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def num(self) -> int: ...  # noqa: D102
    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its mean over the workers."""

    def any(self, said: bool) -> bool:
        """Whether any worker says so; all wait for each other here."""


class OneWorker:
    """A process of its own."""

    index = 0
    num = 1

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Nothing to average with."""

    def any(self, said: bool) -> bool:
        """What it says itself."""
        return said


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

    def any(self, said: bool) -> bool:
        """Whether any process says so; all wait for each other here."""
        if self.num == 1:
            return said
        here = torch.tensor(float(said), device=self._accelerator.device)
        return bool(self._accelerator.reduce(here, reduction="sum") > 0)
