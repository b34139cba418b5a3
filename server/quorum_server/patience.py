"""Waiting in a client's stead for what passes: a full queue, an engine that restarts, ensembles that load.

    attempt  --Patience.wait_for-->  its result, or, when the time is up or waiting is in vain, its error

For clients that give up soon. Knows nothing of what is attempted.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from quorum_client.errors import NotReady, Overloaded
from quorum_server.runtime import Runtime

_Result = TypeVar("_Result")

_PAUSE_S = 1.0
"""Between attempts, where the error does not say when to come back."""


class Patience:
    """Waits until a time.

    Args:
        runtime: tells whether waiting can help.
        give_up_s: on the event loop's clock.
    """

    def __init__(self, runtime: Runtime, give_up_s: float) -> None:
        self._runtime = runtime
        self._give_up_s = give_up_s

    async def wait_for(self, attempt: Callable[[], Awaitable[_Result]]) -> _Result:
        """The result of the first attempt that is neither refused for want of room nor for want of an engine.

        Raises:
            Overloaded, NotReady: the last one's, when the time is up; at once where the server is ending or its start
                failed.
            Exception: whatever else an attempt raises.
        """
        while True:
            try:
                return await attempt()
            except (Overloaded, NotReady) as error:
                # Spread out, or all that wait would come back at once.
                pause_s = (error.retry_after_s or _PAUSE_S) * random.uniform(0.5, 1.0)  # noqa: S311
                is_late = asyncio.get_running_loop().time() + pause_s > self._give_up_s
                if is_late or not self._runtime.may_become_ready:
                    raise
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._runtime.admission.wait_draining()
