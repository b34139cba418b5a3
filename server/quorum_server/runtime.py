"""What lives as long as the server: the engines, the registry, the scheduler, and the loading of the first ensembles.

    start: engines, then load in the background  -->  check_ready  -->  drain  -->  stop

The HTTP side comes up at once and says 503 until ensembles are loaded. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from quorum_client.errors import InternalError, NotReady, QuorumError
from quorum_model.bundle.read import resolve_bundle
from quorum_server.admission import Admission, draining_error
from quorum_server.desired import StateFile
from quorum_server.engine.pool import EnginePool
from quorum_server.engine.supervised import Engine, SupervisedEngine
from quorum_server.events import Observer
from quorum_server.follow import StateFollower
from quorum_server.member_edits import MemberEditor
from quorum_server.reconciler import Reconciler
from quorum_server.registry import Ensemble
from quorum_server.scheduler import Scheduler
from quorum_server.service import ScoringService
from quorum_server.settings import Settings
from quorum_server.traces import Traces
from quorum_server.watch import Watcher

logger = logging.getLogger(__name__)


class Runtime:
    """The server's parts behind HTTP.

    Args:
        settings: what to load, where, and how much to queue.
        make_engine: gives a new engine, not started.
        observer: is told of what happens.
        traces: has a span for each phase of a request; None for none.
    """

    def __init__(
        self,
        settings: Settings,
        make_engine: Callable[[], Engine],
        observer: Observer | None = None,
        traces: Traces | None = None,
    ) -> None:
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
        self._scheduler = Scheduler(self._pool.engines, admission=self.admission, observer=observer)
        self._pool.on_change(self._scheduler.wake)
        self._scheduling: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._is_settled = asyncio.Event()
        self._failure: QuorumError | None = None
        self._watching: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        state = StateFile(settings.state) if settings.state else None
        self._state = state
        self.reconciler = Reconciler(
            self._pool,
            resolve_bundle,
            state,
            observer,
            settings.bundle_roots,
        )
        # Beside the state file, which refers to them.
        folder = settings.state.with_name(f"{settings.state.name}.bundles") if settings.state else None
        self.member_editor = MemberEditor(self.reconciler, resolve_bundle, folder)
        self.registry = self.reconciler.registry
        self.service = ScoringService(
            self.registry,
            self._scheduler,
            self.admission,
            self._threads,
            max_text_chars=settings.max_text_chars,
            observer=observer,
            traces=traces,
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

    async def wait_loaded(self) -> list[Ensemble]:
        """The ensembles that serve, once those of the start are loaded; none where a watched folder is still empty.

        Raises:
            QuorumError: they cannot be loaded, and why.
        """
        await self._is_settled.wait()
        if self._failure is not None:
            raise self._failure
        return self.registry.list()

    def check_ready(self) -> None:
        """Raise `NotReady`, with the reason, unless requests can be scored."""
        if self._failure is not None:
            raise NotReady(f"the start of this server failed ({self._failure.code})")
        if self.admission.is_draining:
            raise draining_error()
        if self._scheduling is None or self._scheduling.done() or not self._pool.is_ready:
            raise NotReady("the engine is not running")
        if not self._is_settled.is_set():
            raise NotReady("the ensembles are being loaded")
        self.registry.check_any()

    def engine_pids(self) -> dict[int, int]:
        """The engines' processes, by their place in `--devices`."""
        return self._pool.pids

    @property
    def may_become_ready(self) -> bool:
        """Whether it can help to wait: the server is not ending, and its start has not failed."""
        return self._failure is None and not self.admission.is_draining

    async def drain(self, timeout_s: float) -> None:
        """Take no more requests, and wait until those under way are answered; with `NotReady` when the time is up."""
        self.admission.start_draining()
        try:
            async with asyncio.timeout(timeout_s):
                await self.service.wait_idle()
        except TimeoutError:
            logger.warning("%d requests were not finished in %g s", self.service.num_under_way, timeout_s)
            self._scheduler.end()

    async def stop(self) -> None:
        """End everything; requests still waiting fail with `NotReady`."""
        await self.reconciler.stop()
        for task in (self._loading, self._watching, self._following, self._scheduling):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._pool.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _load(self) -> None:
        settings = self._settings
        try:
            await self.reconciler.restore(settings.sources)
            if self._state is not None and settings.state_interval_s is not None:
                follower = StateFollower(self._state, self.reconciler, settings.state_interval_s)
                self._following = asyncio.create_task(follower.run())
            if settings.watch is not None:
                watcher = Watcher(settings.watch, self.reconciler, settings.watch_interval_s)
                await watcher.look()
                self._watching = asyncio.create_task(watcher.run())
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
