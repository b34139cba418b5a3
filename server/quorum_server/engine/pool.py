"""One engine a device: what is loaded is loaded on all of them, and each has its own watch.

    load, unload  -->  EnginePool  -->  SupervisedEngine for each of `--devices`

Knows nothing of how work is spread (the scheduler does that), of names or of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from quorum_client.errors import QuorumError
from quorum_server.engine.messages import Loaded
from quorum_server.engine.supervised import SupervisedEngine


class EnginePool:
    """The engines of a server.

    Args:
        engines: at least one, not started.
    """

    def __init__(self, engines: Sequence[SupervisedEngine]) -> None:
        self.engines = engines
        self._watching: list[asyncio.Task[None]] = []

    @property
    def is_ready(self) -> bool:
        """Whether any engine can score now: with some of them gone the others go on."""
        return any(engine.is_ready for engine in self.engines)

    @property
    def pids(self) -> dict[int, int]:
        """The engines' processes, by their place in `--devices`."""
        return {index: engine.pid for index, engine in enumerate(self.engines) if engine.pid is not None}

    def on_change(self, call: Callable[[], None]) -> None:
        """Let `call` be called whenever an engine has become ready, or could not."""
        for engine in self.engines:
            engine.on_change = call

    async def start(self) -> None:
        """Start every engine, empty, and watch over them.

        Raises:
            NotReady: the operating system starts no process.
        """
        await asyncio.gather(*(engine.start() for engine in self.engines))
        self._watching = [asyncio.create_task(engine.run()) for engine in self.engines]

    async def stop(self) -> None:
        """End every engine."""
        for task in self._watching:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(engine.stop() for engine in self.engines))

    async def load(self, path: Path) -> Loaded:
        """Load a bundle on every engine, or on none.

        Returns:
            What the first one says, with the devices of all.

        Raises:
            BundleError: the bundle cannot be used, and why.
            EngineLost: a process ended meanwhile.
        """
        results = await asyncio.gather(*(engine.load(path) for engine in self.engines), return_exceptions=True)
        loaded = [result for result in results if isinstance(result, Loaded)]
        error = next((result for result in results if isinstance(result, BaseException)), None)
        if error is None:
            return replace(loaded[0], device=",".join(one.device for one in loaded))
        for one in loaded:
            await self.unload(one.version)
        raise error

    def missing(self, version: str) -> QuorumError | None:
        """Why an engine could not load a version again after its restart; None where all have it."""
        return next((error for engine in self.engines if (error := engine.missing(version)) is not None), None)

    async def unload(self, version: str) -> None:
        """Free a version on every engine."""
        await asyncio.gather(*(engine.unload(version) for engine in self.engines))
