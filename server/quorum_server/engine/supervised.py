"""An engine that comes back: found dead or hung, it is started anew and loads again what it held.

    load, unload, score  -->  SupervisedEngine  -->  Engine (one process after another)
                                    '-- watch: its end, passes beyond their time, a ping when idle --'

What was under way with a lost process fails with `EngineLost`; whoever asked decides what to do. Knows nothing of
queues, names or HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Protocol

from quorum_client.errors import NotReady, QuorumError
from quorum_server.engine.messages import EngineLost, Loaded, Scores, TokenIds
from quorum_server.events import Observer, RestartReason

logger = logging.getLogger(__name__)

_HEARTBEAT_S = 10.0
_FIRST_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 30.0
# A pass may take this many times as long as passes of its size took so far, beyond the floor …
_SLOWNESS = 20.0
# … and while nothing is measured, this long a token: the slowest backbone on the slowest machine is faster.
_UNMEASURED_S_PER_TOKEN = 0.01
_RATE_SMOOTHING = 0.2


class Engine(Protocol):
    """One process; see `EngineProcess`."""

    @property
    def pid(self) -> int | None:
        """Its process; None where it has none, or none yet."""

    @property
    def is_alive(self) -> bool:
        """Whether it can be spoken to."""

    async def start(self) -> None:
        """Start it, empty."""

    async def stop(self) -> None:
        """End it."""

    def kill(self) -> None:
        """End it at once."""

    async def wait_ended(self) -> None:
        """Wait until it has ended by itself, or was killed."""

    async def ping(self) -> None:
        """Wait until it has done what was asked before."""

    async def load(self, path: Path, *, device: str, dtype: str, token_budget: int | None) -> Loaded:
        """Load a bundle and prove that it scores as it should; raises `BundleError`."""

    async def unload(self, version: str) -> None:
        """Free a loaded version."""

    async def score(self, version: str, sequences: Sequence[TokenIds]) -> Scores:
        """Raw scores of B >= 1 sequences."""


class SupervisedEngine:
    """The engine of one device.

    Args:
        index: its place in `--devices`.
        make: gives a new process, not started.
        device: auto, cpu, cuda, cuda:N.
        dtype: of the weights.
        token_budget: most tokens in one pass; None lets each ensemble try what is fastest.
        pass_timeout_s: what any pass may take, beyond a generous time by its tokens.
        observer: is told of restarts.
    """

    def __init__(
        self,
        index: int,
        make: Callable[[], Engine],
        *,
        device: str,
        dtype: str,
        token_budget: int | None,
        pass_timeout_s: float,
        observer: Observer | None = None,
    ) -> None:
        self._index = index
        self._make = make
        self._device = device
        self._dtype = dtype
        self._token_budget = token_budget
        self._pass_timeout_s = pass_timeout_s
        self._observer = observer or Observer()
        self._engine = make()
        self._paths: dict[str, Path] = {}
        self._missing: dict[str, QuorumError] = {}
        self._is_ready = False
        self._is_settled = asyncio.Event()
        self._is_hung = False
        self._num_passes = 0
        self._expected_s = 0.0
        self._s_per_token: float | None = None
        self.has_failed = False
        self.on_change: Callable[[], None] = lambda: None
        """Called when the engine has become ready, or could not."""

    @property
    def pid(self) -> int | None:
        """The engine's process now; None while there is none."""
        return self._engine.pid

    @property
    def is_ready(self) -> bool:
        """Whether it can score now."""
        return self._is_ready and self._engine.is_alive

    async def start(self) -> None:
        """Start the first process.

        Raises:
            NotReady: the operating system starts none.
        """
        await self._engine.start()
        self._settle(is_ready=True)

    async def run(self) -> None:
        """Watch over the process, and replace it, for ever."""
        while True:
            reason = await self._watch()
            self._is_ready = False
            self._is_settled.clear()
            logger.error("engine %d (%s) %s; it is restarted", self._index, self._device, reason)
            self._observer.engine_restarted(self._index, reason)
            await self._restart()

    async def stop(self) -> None:
        """End the process; whatever still waits for it fails with EngineLost."""
        self._is_ready = False
        await self._engine.stop()

    async def load(self, path: Path) -> Loaded:
        """Load a bundle, beside what is loaded, and again after each restart until it is unloaded.

        Raises:
            BundleError: the bundle cannot be used, and why.
            NotReady: the process ended meanwhile, or cannot be started.
        """
        await self._is_settled.wait()
        if self.has_failed:
            raise NotReady(f"engine {self._index} ({self._device}) cannot be started")
        loaded = await self._load(path)
        self._paths[loaded.version] = path
        self._missing.pop(loaded.version, None)
        return loaded

    def missing(self, version: str) -> QuorumError | None:
        """Why it could not be loaded again after a restart; it is tried again every few seconds."""
        return self._missing.get(version)

    async def unload(self, version: str) -> None:
        """Free a version; one that is not loaded is nothing."""
        self._paths.pop(version, None)
        self._missing.pop(version, None)
        with contextlib.suppress(EngineLost):  # then it is gone anyway
            await self._engine.unload(version)

    async def score(self, version: str, sequences: Sequence[TokenIds]) -> Scores:
        """Raw scores of B >= 1 sequences.

        Raises:
            EngineLost: the process is gone, or was ended because it hung.
            NotReady: this version could not be loaded again after a restart.
            InternalError: the engine failed at these sequences.
        """
        if not self.is_ready:
            raise EngineLost("the engine is being restarted")
        if version in self._missing:
            raise NotReady(f"version {version} could not be loaded again ({self._missing[version].code})")
        num_tokens = sum(map(len, sequences))
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        async with self._in_time(num_tokens):
            scores = await self._engine.score(version, sequences)
        own = (loop.time() - sent_s) / num_tokens
        old = self._s_per_token
        self._s_per_token = own if old is None else old + _RATE_SMOOTHING * (own - old)
        return scores

    @contextlib.asynccontextmanager
    async def _in_time(self, num_tokens: int) -> AsyncIterator[None]:
        """Let what is inside take as long as a pass of so many tokens may, and end the process where it does not."""
        engine = self._engine
        allowed_s = self._pass_timeout_s + num_tokens * (
            _UNMEASURED_S_PER_TOKEN if self._s_per_token is None else _SLOWNESS * self._s_per_token
        )
        # A pass that waits behind another one has that one's time too.
        start_s = max(asyncio.get_running_loop().time(), self._expected_s if self._num_passes else 0.0)
        self._expected_s = start_s + allowed_s
        self._num_passes += 1
        try:
            async with asyncio.timeout_at(self._expected_s):
                yield
        except TimeoutError:
            self._is_hung = True
            engine.kill()
            raise EngineLost("the engine did not answer in time") from None
        finally:
            self._num_passes -= 1

    async def _watch(self) -> RestartReason:
        """Returns when the process has ended, and why."""
        self._is_hung = False
        while True:
            try:
                async with asyncio.timeout(_HEARTBEAT_S):
                    await self._engine.wait_ended()
                    return "hung" if self._is_hung else "died"
            except TimeoutError:
                with contextlib.suppress(EngineLost):
                    await self._beat()

    async def _beat(self) -> None:
        """When idle: does it still answer, and can it load now what it could not before?"""
        if self._num_passes == 0:
            async with self._in_time(0):
                await self._engine.ping()
        if self._missing:
            await self._reload(list(self._missing))

    async def _restart(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            await self._engine.stop()
            self._engine = self._make()
            try:
                await self._engine.start()
                await self._reload(list(self._paths))
                self._settle(is_ready=True)
                return
            except NotReady as error:
                logger.error("engine %d (%s) cannot be restarted: %s", self._index, self._device, error.message)
            self._settle(is_ready=False)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    def _settle(self, *, is_ready: bool) -> None:
        self._is_ready = is_ready
        self.has_failed = not is_ready
        self._is_settled.set()
        self.on_change()

    async def _reload(self, versions: list[str]) -> None:
        """Load again what was held; a bundle that is not what it was any more is missing, and its neighbours are not.

        Raises:
            EngineLost: the process ended meanwhile.
        """
        for version in versions:
            path = self._paths.get(version)
            if path is None:
                continue
            try:
                loaded = await self._load(path)
                if loaded.version != version:
                    await self._engine.unload(loaded.version)
                    raise NotReady(f"{path} has become version {loaded.version}")
                self._missing.pop(version, None)
            except EngineLost:
                raise
            except QuorumError as error:
                logger.error("version %s cannot be loaded again: %s", version, error.message)
                self._missing[version] = error

    async def _load(self, path: Path) -> Loaded:
        return await self._engine.load(path, device=self._device, dtype=self._dtype, token_budget=self._token_budget)
