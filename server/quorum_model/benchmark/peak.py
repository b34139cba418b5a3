"""The machine's matrix peak: how fast large square products are, which is the ceiling of any forward pass.

dtype, device  --SquareProduct-->  work of a known number of operations
"""

from __future__ import annotations

import time

import torch

_SIDE = {"cpu": 2048, "cuda": 8192}
_SECONDS_A_TURN = 0.5


class SquareProduct:
    """Products of two square matrices, as a Linear does them (x W^T): enough of them that a turn takes half a second.

    Args:
        dtype: of the matrices; fp32 as PyTorch multiplies it by default (no TF32).
        device: where.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._side = _SIDE.get(device.type, _SIDE["cpu"])
        self._device = device
        draw = torch.Generator().manual_seed(0)
        self._x, self._weight = (
            torch.randn(self._side, self._side, generator=draw).to(device, dtype) for _ in range(2)
        )
        self._repeats = 1
        self.run()  # warm
        once = self._seconds()
        self._repeats = max(1, round(_SECONDS_A_TURN / once))

    @property
    def flops(self) -> int:
        """Operations of one `run`."""
        return self._repeats * 2 * self._side**3

    def run(self) -> None:
        """Multiply, and wait for the result."""
        for _ in range(self._repeats):
            torch.nn.functional.linear(self._x, self._weight)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _seconds(self) -> float:
        started = time.perf_counter()
        self.run()
        return time.perf_counter() - started
