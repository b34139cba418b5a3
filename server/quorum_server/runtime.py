"""What lives as long as the server: the engines, the registry, the scheduler, and the loading of the first ensemble.

    start: engines, then load in the background  -->  check_ready  -->  drain  -->  stop

The HTTP side comes up at once and says 503 until the ensemble is loaded. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from quorum_client.errors import InternalError, NotReady, QuorumError
from quorum_server.admission import Admission, draining_error
from quorum_server.engine.pool import EnginePool
from quorum_server.engine.supervised import Engine, SupervisedEngine
from quorum_server.events import Observer
from quorum_server.registry import Ensemble, Registry, load_ensemble
from quorum_server.scheduler import Scheduler
from quorum_server.service import ScoringService
from quorum_server.settings import Settings

logger = logging.getLogger(__name__)


class Runtime:
    """The server's parts behind HTTP.

    Args:
        settings: what to load, where, and how much to queue.
        make_engine: gives a new engine, not started.
        observer: is told of what happens.
    """

    def __init__(self, settings: Settings, make_engine: Callable[[], Engine], observer: Observer | None = None) -> None:
        self._settings = settings
        self._pool = EnginePool(
            [
                SupervisedEngine(
                    index,
                    make_engine,
                    device=device,
                    dtype=settings.dtype,
                    token_budget=settings.token_budget,
                    pass_timeout_s=settings.pass_timeout_s,
                    observer=observer,
                )
                for index, device in enumerate(settings.device_list)
            ]
        )
        self._threads = ThreadPoolExecutor(settings.tokenizer_threads, thread_name_prefix="tokenizer")
        self.admission = Admission(
            max_tokens=settings.max_queued_tokens, max_bytes=settings.max_queued_bytes, observer=observer
        )
        self._scheduler = Scheduler(
            self._pool.engines, token_budget=settings.token_budget, admission=self.admission, observer=observer
        )
        self._pool.on_change(self._scheduler.wake)
        self._scheduling: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._is_settled = asyncio.Event()
        self._failure: QuorumError | None = None
        self.registry = Registry()
        self.service = ScoringService(
            self.registry,
            self._scheduler,
            self.admission,
            self._threads,
            max_text_chars=settings.max_text_chars,
            token_budget=settings.token_budget,
            observer=observer,
        )

    async def start(self) -> None:
        """Start the engine and, in the background, load the ensemble; see `wait_loaded` for what fails of it."""
        try:
            await self._pool.start()
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
        if self.admission.is_draining:
            raise draining_error()
        if self._scheduling is None or self._scheduling.done() or not self._pool.is_ready:
            raise NotReady("the engine is not running")
        if not self._is_settled.is_set():
            raise NotReady("the ensemble is being loaded")

    async def drain(self, timeout_s: float) -> None:
        """Take no more requests, and wait until those under way are answered; with `NotReady` when the time is up."""
        self.admission.is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self.service.wait_idle()
        except TimeoutError:
            logger.warning("%d requests were not finished in %g s", self.service.num_under_way, timeout_s)
            self._scheduler.end()

    async def stop(self) -> None:
        """End everything; requests still waiting fail with `NotReady`."""
        for task in (self._loading, self._scheduling):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._pool.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _load(self) -> None:
        try:
            ensemble = await load_ensemble(self._settings.bundle, self._pool)
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
