"""How much work the server holds at once, in tokens and in bytes, and what it says to work beyond that.

    request  --check_open, hold_bytes, hold_tokens-->  held until it is answered  |  429 with Retry-After, 413, 503

Knows nothing of what is held, of engines or of HTTP.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quorum_client.errors import NotReady, Overloaded, RequestTooLarge
from quorum_server.events import Observer, Rejection

_MAX_RETRY_AFTER_S = 60.0
_UNMEASURED_RETRY_AFTER_S = 1.0
_DRAINING_RETRY_AFTER_S = 5.0
"""While this server ends: about what a supervisor or a load balancer needs to find another one."""
_RATE_SMOOTHING = 0.2


def draining_error() -> NotReady:
    """What a server that is ending says."""
    return NotReady("the server is shutting down", retry_after_s=_DRAINING_RETRY_AFTER_S)


class QueueFull(Overloaded):
    """There is no room now.

    Args:
        message: see `QuorumError`.
        reason: which bound. Counted where a client is told, since some routes wait and try again.
        retry_after_s: when to come back.
    """

    def __init__(self, message: str, *, reason: Rejection, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.reason = reason


class Admission:
    """What is held, and its bounds.

    Args:
        max_tokens: most tokens accepted and not yet answered.
        max_bytes: most bytes of bodies of requests not yet answered.
        observer: is told of what is refused, but for `QueueFull`.
    """

    def __init__(self, *, max_tokens: int, max_bytes: int, observer: Observer | None = None) -> None:
        self._max_tokens = max_tokens
        self._max_bytes = max_bytes
        self._observer = observer or Observer()
        self._tokens_per_s: float | None = None
        self.held_tokens = 0
        self.held_bytes = 0
        self._draining = asyncio.Event()

    @property
    def is_draining(self) -> bool:
        """Whether the server is ending."""
        return self._draining.is_set()

    def start_draining(self) -> None:
        """Take no more work."""
        self._draining.set()

    async def wait_draining(self) -> None:
        """Wait until the server is ending."""
        await self._draining.wait()

    def check_open(self) -> None:
        """Refuse work when the server is ending.

        Raises:
            NotReady: it is.
        """
        if self.is_draining:
            self._observer.rejected("draining")
            raise draining_error()

    def check_room(self, num_tokens: int = 0) -> None:
        """Refuse tokens that do not fit. Of a request that was taken on before the server began to end, they still do.

        Raises:
            RequestTooLarge: they would not fit an empty queue either.
            QueueFull: too many are held now; says after how many seconds to try again.
        """
        if num_tokens > self._max_tokens:
            self._observer.rejected("too_large")
            raise RequestTooLarge(
                f"the request has {num_tokens} tokens; this server takes at most {self._max_tokens} at once"
            )
        if self.held_tokens + max(num_tokens, 1) > self._max_tokens:
            wait_s = self.estimate_wait_s()
            raise QueueFull("the queue is full; try again later", reason="queue_tokens", retry_after_s=wait_s)

    @contextmanager
    def hold_tokens(self, num_tokens: int) -> Iterator[None]:
        """Hold tokens until they are answered; see `check_room` for what is raised."""
        self.check_room(num_tokens)
        self.held_tokens += num_tokens
        try:
            yield
        finally:
            self.held_tokens -= num_tokens

    @contextmanager
    def hold_bytes(self) -> Iterator[Callable[[int], None]]:
        """Hold a body until its request is answered: gives what is to be told of each part of it, in bytes.

        Telling raises `QueueFull` where too many bytes are held.
        """
        held = 0

        def hold(num_bytes: int) -> None:
            nonlocal held
            if self.held_bytes + num_bytes > self._max_bytes:
                wait_s = self.estimate_wait_s()
                raise QueueFull("too much text is waiting; try again later", reason="queue_bytes", retry_after_s=wait_s)
            held += num_bytes
            self.held_bytes += num_bytes

        try:
            yield hold
        finally:
            self.held_bytes -= held

    def measure(self, num_tokens: int, elapsed_s: float, num_engines: int = 1) -> None:
        """Learn how fast tokens are answered: by one engine, of so many that work at once."""
        rate = num_engines * num_tokens / max(elapsed_s, 1e-6)
        old = self._tokens_per_s
        self._tokens_per_s = rate if old is None else old + _RATE_SMOOTHING * (rate - old)

    def estimate_wait_s(self) -> float:
        """Whole seconds until about everything held now is answered, by the rate measured so far; from 1 to 60."""
        if self._tokens_per_s is None:
            return _UNMEASURED_RETRY_AFTER_S
        return min(max(float(math.ceil(self.held_tokens / self._tokens_per_s)), 1.0), _MAX_RETRY_AFTER_S)
