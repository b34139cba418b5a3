"""The engine's child process: one loop that loads bundles and scores token ids.

    Load, Score, Stop  --connection-->  loader, scorer  --connection-->  Loaded, Scores, Failed

The only part of the server that holds weights. Knows nothing of text, calibration, queues or HTTP; it lives exactly as
long as its parent.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quorum_client.errors import InternalError, QuorumError
from quorum_model.bundle.read import read_bundle
from quorum_server.engine.messages import Answer, Failed, Load, Loaded, Request, Score, Scores, Stop
from quorum_server.logs import configure_logging

logger = logging.getLogger(__name__)


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

    def score(self, sequences: list[list[int]]) -> _RawScores: ...


Loader = Callable[..., _Scorer]


def run_engine(
    connection: Connection[Answer, Request | Stop], loader: str, num_threads: int | None, log_level: str
) -> None:
    """Serve messages until told to stop, or the connection closes, or the parent dies.

    Args:
        connection: this process's end of the pipe.
        loader: `module:function` of what loads a scorer from a bundle; see `load_member_scorer`.
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
    scorers: dict[str, _Scorer] = {}
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        if isinstance(request, Stop):
            return
        connection.send(_answer(request, scorers, loader))


def _die_with_parent() -> None:
    """End this process at once when the parent is gone, even in the middle of a pass."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


def _answer(request: Request, scorers: dict[str, _Scorer], loader: str) -> Answer:
    try:
        if isinstance(request, Load):
            return _load(request, scorers, loader)
        return _score(request, scorers)
    except QuorumError as error:
        return Failed(request.job_id, error.code, error.message)
    except Exception as error:
        logger.exception("engine: %s failed", type(request).__name__)
        return Failed(request.job_id, InternalError.code, f"{type(error).__name__}: {error}")


def _load(request: Load, scorers: dict[str, _Scorer], loader: str) -> Loaded:
    module, _, function = loader.partition(":")
    load: Loader = getattr(importlib.import_module(module), function)
    bundle = read_bundle(Path(request.path))
    scorer = load(bundle, device=request.device, dtype=request.dtype, token_budget=request.token_budget)
    scorers[bundle.version] = scorer
    return Loaded(
        request.job_id, bundle.version, scorer.num_members, scorer.device, scorer.dtype, str(scorer.attention)
    )


def _score(request: Score, scorers: dict[str, _Scorer]) -> Scores:
    scores = scorers[request.version].score(request.unpack())
    return Scores(request.job_id, scores.raw, scores.computed_tokens)
