"""The engine's child process: loads bundles and scores token ids.

    connection --reader thread--> Score, Unload, Ping  --main thread: scorers-->  Scores, Done, Failed --> connection
                            '---> Load  --loader thread: beside the passes-->  Loaded, Failed --> connection

The reader makes the next pass ready while the main thread scores; a bundle is loaded and tested in a thread of its own,
so that an ensemble that serves goes on serving. The only part of the server that holds weights. Knows nothing of text,
calibration, queues or HTTP; it lives exactly as long as its parent.
"""

from __future__ import annotations

import gc
import importlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quorum_client.errors import InternalError, QuorumError
from quorum_model.bundle.read import read_bundle
from quorum_model.errors import BundleCorrupt, BundleError
from quorum_server.engine.messages import (
    Answer,
    Done,
    Failed,
    Load,
    Loaded,
    Request,
    Score,
    Scores,
    Stop,
    Unload,
)
from quorum_server.logs import configure_logging

logger = logging.getLogger(__name__)

_DEVICE_ERROR = "AcceleratorError"
_OUT_OF_MEMORY = ("MemoryError", "OutOfMemoryError")
"""torch's, by name: torch is only imported where a bundle is loaded."""


class _RawScores(Protocol):
    @property
    def raw(self) -> NDArray[np.float32]: ...
    @property
    def computed_tokens(self) -> int: ...


class _Scorer(Protocol):
    num_members: int
    device: str
    dtype: str
    attention: Any
    token_budget: int
    shares_prefixes: bool

    def score(self, sequences: list[list[int]]) -> _RawScores: ...


Loader = Callable[..., _Scorer]


def run_engine(
    connection: Connection[Answer, Request | Stop], loader: str, num_threads: int | None, log_level: str
) -> None:
    """Serve messages until told to stop, or the connection closes, or the parent dies.

    Args:
        connection: this process's end of the pipe.
        loader: `module:function` that makes what loads a scorer from a bundle; see `make_sharing_loader`.
        num_threads: CPU threads for the arithmetic; None leaves torch its choice.
        log_level: see `configure_logging`.
    """
    # Ctrl-C, and a service manager's SIGTERM, reach the whole process group; the parent decides when the engine ends,
    # after its last request.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    configure_logging(log_level)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if num_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(num_threads)  # read when torch is imported, by the loader
    _Worker(connection, loader).run()


def _die_with_parent() -> None:
    """End this process at once when the parent is gone, even in the middle of a pass."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


class _Worker:
    def __init__(self, connection: Connection[Answer, Request | Stop], loader: str) -> None:
        self._connection = connection
        self._loader = loader
        self._load_scorer: Loader | None = None
        self._scorers: dict[str, _Scorer] = {}
        self._sending = threading.Lock()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._loads = ThreadPoolExecutor(1, thread_name_prefix="loader")

    def run(self) -> None:
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        while (task := self._tasks.get()) is not None:
            task()
        os._exit(0)  # a load that is not finished holds nothing that needs saving

    def _read(self) -> None:
        try:
            while not isinstance(request := self._connection.recv(), Stop):
                self._accept(request)
        except EOFError:
            pass
        finally:
            self._tasks.put(None)

    def _accept(self, request: Request) -> None:
        if isinstance(request, Load):
            self._loads.submit(self._answer, request, lambda: self._load(request))
        elif isinstance(request, Score):
            sequences = request.unpack()  # here, while the main thread scores
            self._tasks.put(lambda: self._answer(request, lambda: self._score(request, sequences)))
        elif isinstance(request, Unload):
            self._tasks.put(lambda: self._answer(request, lambda: self._unload(request)))
        else:
            self._tasks.put(lambda: self._answer(request, lambda: Done(request.job_id)))

    def _answer(self, request: Request, work: Callable[[], Answer]) -> None:
        answer: Answer
        try:
            answer = work()
        except QuorumError as error:
            answer = Failed(request.job_id, error.code, error.message)
        except Exception as error:
            logger.exception("engine: %s failed", type(request).__name__)
            if type(error).__name__ == _DEVICE_ERROR:
                # The device refuses all further work of this process: its successor can go on, this one cannot.
                os._exit(1)
            answer = Failed(request.job_id, InternalError.code, f"{type(error).__name__}: {error}")
        with self._sending:
            self._connection.send(answer)

    def _load(self, request: Load) -> Loaded:
        if self._load_scorer is None:
            module, _, function = self._loader.partition(":")
            self._load_scorer = getattr(importlib.import_module(module), function)()
        bundle = read_bundle(Path(request.path))
        # Beside passes under way nothing is tried: it would slow them, and they would falsify it.
        loaded = list(self._scorers.values())
        token_budget = request.token_budget or (loaded[-1].token_budget if loaded else None)
        try:
            scorer = self._load_scorer(bundle, device=request.device, dtype=request.dtype, token_budget=token_budget)
        except (MemoryError, RuntimeError) as error:
            if type(error).__name__ not in _OUT_OF_MEMORY:
                raise
            raise BundleError("there is not enough memory to load it beside what is loaded") from error
        if read_bundle(bundle.path).version != bundle.version:  # verified once more: what was read in between is that
            raise BundleCorrupt(f"{bundle.path} has changed while it was loaded")
        self._scorers[bundle.version] = scorer
        return Loaded(
            request.job_id,
            bundle.version,
            scorer.num_members,
            scorer.device,
            scorer.dtype,
            str(scorer.attention),
            scorer.token_budget,
            scorer.shares_prefixes,
        )

    def _unload(self, request: Unload) -> Done:
        self._scorers.pop(request.version, None)
        gc.collect()  # modules with hooks are cycles
        return Done(request.job_id)

    def _score(self, request: Score, sequences: list[list[int]]) -> Scores:
        scores = self._scorers[request.version].score(sequences)
        return Scores(request.job_id, scores.raw, scores.computed_tokens)
