"""The server's handle on its engine process: start it, talk to it without blocking, notice its death.

    load(), score()  --sender thread-->  child process  --reader thread-->  asyncio futures

Nothing here blocks the event loop: a full pipe holds up the sender thread, a slow pass holds up a future. Knows nothing
of queues, text or HTTP.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import logging
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from quorum_client.errors import InternalError, NotReady, QuorumError
from quorum_model.errors import BundleError
from quorum_server.engine.messages import (
    Answer,
    EngineLost,
    Failed,
    Load,
    Loaded,
    Ping,
    Request,
    Score,
    Scores,
    Stop,
    TokenIds,
    Unload,
)
from quorum_server.engine.worker import run_engine

logger = logging.getLogger(__name__)

DEFAULT_LOADER = "quorum_model.loading:make_sharing_loader"


class EngineProcess:
    """One engine in a child process, started and stopped once: a successor is an object of its own.

    Args:
        loader: `module:function` that makes, inside the child, what loads a scorer; see `make_sharing_loader`.
        num_threads: CPU threads of the child; None leaves torch its choice.
        log_level: of the child's log; see `configure_logging`.
        stop_timeout_s: how long the child may take to end by itself when told to.
    """

    def __init__(
        self,
        *,
        loader: str = DEFAULT_LOADER,
        num_threads: int | None = None,
        log_level: str = "info",
        stop_timeout_s: float = 3.0,
    ) -> None:
        self._log_level = log_level
        self._stop_timeout_s = stop_timeout_s
        self._loader = loader
        self._num_threads = num_threads
        self._job_ids = itertools.count()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="engine-sender")
        self._process: SpawnProcess | None = None
        self._connection: Connection[Request | Stop, Answer] | None = None
        self._reader: threading.Thread | None = None
        self._is_alive = False
        self._has_ended = asyncio.Event()

    @property
    def is_alive(self) -> bool:
        """Whether the child runs and can be spoken to."""
        return self._is_alive

    @property
    def pid(self) -> int | None:
        """The child's process id; None before `start`."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the child; it holds no ensemble yet.

        Raises:
            NotReady: the operating system starts no process.
        """
        # spawn: a forked copy of a process with threads and a CUDA context is not safe to use.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=run_engine,
            args=(theirs, self._loader, self._num_threads, self._log_level),
            name="quorum-engine",
            daemon=True,
        )
        try:
            await asyncio.to_thread(process.start)
        except OSError as error:
            ours.close()
            raise NotReady(f"the engine's process cannot be started: {error}") from error
        finally:
            theirs.close()  # so that the child's end is the last one, and its death is an end of file here
        # Python, at its own end, would send a SIGTERM, which the child ignores, and wait.
        atexit.register(process.kill)
        self._process, self._connection, self._is_alive = process, ours, True
        self._reader = threading.Thread(
            target=_read_answers,
            args=(process, ours, asyncio.get_running_loop(), self._deliver, self._mark_dead),
            name="engine-reader",
            daemon=True,
        )
        self._reader.start()

    async def load(self, path: Path, *, device: str, dtype: str, token_budget: int | None) -> Loaded:
        """Load a bundle in the child and run its self-test.

        Raises:
            BundleError: the bundle cannot be used, with the code of the reason.
            EngineLost: the child is dead, or died of it.
        """
        job_id = next(self._job_ids)
        answer = await self._ask(Load(job_id, str(path), device, dtype, token_budget))
        assert isinstance(answer, Loaded)
        return answer

    async def unload(self, version: str) -> None:
        """Free a loaded version, after the passes that were sent before.

        Raises:
            EngineLost: the child is dead.
        """
        await self._ask(Unload(next(self._job_ids), version))

    async def ping(self) -> None:
        """Wait until the child has done everything that was asked before.

        Raises:
            EngineLost: the child is dead.
        """
        await self._ask(Ping(next(self._job_ids)))

    async def score(self, version: str, sequences: Sequence[TokenIds]) -> Scores:
        """Raw scores of B >= 1 sequences.

        Raises:
            InternalError: the engine failed at these sequences.
            EngineLost: the child is dead, or died of them.
        """
        answer = await self._ask(Score.pack(next(self._job_ids), version, sequences))
        assert isinstance(answer, Scores)
        return answer

    async def wait_ended(self) -> None:
        """Wait until the child has ended by itself, or was killed."""
        await self._has_ended.wait()

    def kill(self) -> None:
        """End the child at once: it does not answer any more."""
        if self._process is not None:
            self._process.kill()

    async def stop(self) -> None:
        """End the child; whatever still waits for it fails with EngineLost."""
        process, connection, reader = self._process, self._connection, self._reader
        if process is None or connection is None or reader is None:
            return
        self._is_alive = False  # from here on its end is no news
        self._sender.submit(_send, connection, Stop())
        await asyncio.to_thread(reader.join, self._stop_timeout_s)
        if reader.is_alive():
            process.kill()  # it hangs, or is in the middle of a pass, and holds nothing that needs saving
            await asyncio.to_thread(reader.join)
        atexit.unregister(process.kill)
        self._fail_waiting()
        self._sender.shutdown()
        connection.close()
        process.close()
        self._process = self._connection = self._reader = None

    async def _ask(self, request: Request) -> Answer:
        if not self._is_alive or self._connection is None:
            raise EngineLost("the engine is not running")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting[request.job_id] = future
        try:
            # One sender thread: messages leave whole and in order, however many callers there are.
            await loop.run_in_executor(self._sender, _send, self._connection, request)
            answer = await future
        finally:
            self._waiting.pop(request.job_id, None)
        if isinstance(answer, Failed):
            raise _error_of(answer, request)
        return answer

    def _deliver(self, answer: Answer) -> None:
        future = self._waiting.get(answer.job_id)
        if future is not None and not future.done():
            future.set_result(answer)

    def _mark_dead(self, exit_code: int | None) -> None:
        if self._is_alive:
            self._is_alive = False
            logger.error("the engine process has ended by itself, with exit code %s", exit_code)
        self._has_ended.set()
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(EngineLost("the engine process ended before it answered"))


def _send(connection: Connection[Request | Stop, Answer], request: Request | Stop) -> None:
    # A child that died is the reader's to notice: it fails every future at once.
    with contextlib.suppress(OSError):
        connection.send(request)


def _read_answers(
    process: SpawnProcess,
    connection: Connection[Request | Stop, Answer],
    loop: asyncio.AbstractEventLoop,
    deliver: Callable[[Answer], None],
    mark_dead: Callable[[int | None], None],
) -> None:
    """Hand the child's answers to the event loop until the child ends (the reader thread)."""
    try:
        with contextlib.suppress(EOFError, OSError):  # its end of the pipe is closed
            while True:
                loop.call_soon_threadsafe(deliver, connection.recv())
    except Exception:  # whatever it is: a child that nobody listens to must not look alive
        if not loop.is_closed():
            logger.exception("the engine's answer cannot be read")
        process.kill()
    finally:
        process.join()  # no zombie is left
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(mark_dead, process.exitcode)


def _error_of(answer: Failed, request: Request) -> QuorumError:
    if answer.code == InternalError.code:
        return InternalError(answer.message)
    if isinstance(request, Load):
        error = BundleError(answer.message)
        error.code = answer.code
        return error
    return InternalError(f"{answer.code}: {answer.message}")
