"""What lives as long as the server: the engine, the registry, the scheduler, and the loading of the first ensemble.

    start: engine, then load in the background  -->  check_ready  -->  stop

The HTTP side comes up at once and says 503 until the ensemble is loaded. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from quorum_client.errors import InternalError, NotReady, QuorumError
from quorum_server.events import Observer
from quorum_server.registry import Ensemble, LoadingEngine, Registry, load_ensemble
from quorum_server.scheduler import Scheduler, ScoringEngine
from quorum_server.service import ScoringService
from quorum_server.settings import Settings

logger = logging.getLogger(__name__)


class Engine(LoadingEngine, ScoringEngine, Protocol):
    """An engine with a life of its own; see `EngineProcess`."""

    @property
    def is_alive(self) -> bool:
        """Whether it can be spoken to."""

    async def start(self) -> None:
        """Start it, empty."""

    async def stop(self) -> None:
        """End it."""


class Runtime:
    """The server's parts behind HTTP.

    Args:
        settings: what to load, where, and how much to queue.
        engine: not started yet.
        observer: is told of what happens.
    """

    def __init__(self, settings: Settings, engine: Engine, observer: Observer | None = None) -> None:
        self._settings = settings
        self._engine = engine
        self._threads = ThreadPoolExecutor(settings.tokenizer_threads, thread_name_prefix="tokenizer")
        self._scheduler = Scheduler(
            engine,
            token_budget=settings.token_budget,
            max_queued_tokens=settings.max_queued_tokens,
            observer=observer,
        )
        self._scheduling: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._is_settled = asyncio.Event()
        self._failure: QuorumError | None = None
        self.registry = Registry()
        self.service = ScoringService(
            self.registry,
            self._scheduler,
            self._threads,
            max_text_chars=settings.max_text_chars,
            observer=observer,
        )

    @property
    def queued_tokens(self) -> int:
        """Tokens of all requests accepted and not yet answered."""
        return self._scheduler.queued_tokens

    async def start(self) -> None:
        """Start the engine and, in the background, load the ensemble; see `wait_loaded` for what fails of it."""
        try:
            await self._engine.start()
        except Exception as error:
            self._settle(error)
            return
        self._scheduling = asyncio.create_task(self._scheduler.run())
        self._loading = asyncio.create_task(self._load())

    async def wait_loaded(self) -> Ensemble:
        """The first ensemble, once it is loaded.

        Raises:
            QuorumError: it cannot be loaded, and why.
        """
        await self._is_settled.wait()
        if self._failure is not None:
            raise self._failure
        return self.registry.get(None)

    def check_ready(self) -> None:
        """Raise `NotReady`, with the reason, unless requests can be scored."""
        if self._failure is not None:
            raise NotReady(f"the start of this server failed ({self._failure.code})")
        if self._scheduling is None or self._scheduling.done() or not self._engine.is_alive:
            raise NotReady("the engine is not running")
        if not self._is_settled.is_set():
            raise NotReady("the ensemble is being loaded")

    async def stop(self) -> None:
        """End everything; requests still waiting fail with `NotReady`."""
        for task in (self._loading, self._scheduling):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._engine.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _load(self) -> None:
        settings = self._settings
        try:
            ensemble = await load_ensemble(
                settings.bundle,
                self._engine,
                device=settings.device,
                dtype=settings.dtype,
                token_budget=settings.token_budget,
            )
            self.registry.put(ensemble)
        except Exception as error:
            self._settle(error)
        else:
            self._settle(None)

    def _settle(self, error: Exception | None) -> None:
        if error is not None and not isinstance(error, QuorumError):
            logger.error("the start failed", exc_info=error)
            error = InternalError(f"{type(error).__name__}: {error}")
        self._failure = error
        self._is_settled.set()
