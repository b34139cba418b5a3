"""The one scoring call behind every route: text in, rewards out.

    request  --prepare (thread)-->  token ids, units  --scheduler-->  raw scores  --finish (thread)-->  response

The event loop only waits. Knows nothing of HTTP; the deadline and the request id come as plain values.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from quorum_client.errors import DeadlineExceeded, RequestTooLarge
from quorum_client.types import (
    CompareListResponse,
    CompareRequest,
    CompareResponse,
    RankRequest,
    RankResponse,
    ScoreRequest,
    ScoreResponse,
)
from quorum_model.scoring import (
    PreparedComparisons,
    PreparedRewards,
    ScoringContext,
    finish_compare,
    finish_rank,
    finish_score,
    mark_failed,
    prepare_compare,
    prepare_rank,
    prepare_score,
)
from quorum_server.admission import Admission
from quorum_server.deadline import keep_deadline
from quorum_server.engine.messages import TokenIds
from quorum_server.events import Observer
from quorum_server.jobs import JobScores
from quorum_server.limits import check_text
from quorum_server.packing import Unit, cut_units
from quorum_server.registry import Ensemble, Registry
from quorum_server.scheduler import Scheduler
from quorum_server.traces import Traces

_Request = TypeVar("_Request", ScoreRequest, RankRequest, CompareRequest)
_Response = TypeVar("_Response", bound=ScoreResponse | RankResponse | CompareResponse | CompareListResponse)
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Call:
    """What a request brings besides its body. deadline_s: on the event loop's clock; None for none."""

    request_id: str
    deadline_s: float | None


@dataclass(frozen=True, slots=True)
class _Work:
    """A request, ready for the scheduler. elapsed_s: what that took."""

    prepared: PreparedRewards | PreparedComparisons
    sequences: list[TokenIds]
    units: list[Unit]
    elapsed_s: float


class ScoringService:
    """Answers scoring requests.

    Args:
        registry: the loaded ensembles.
        scheduler: the way to the engines.
        admission: what is asked before any work.
        threads: runs tokenising and the arithmetic after the engine.
        max_text_chars: most characters to tokenise for one request.
        observer: is told of what was answered.
        traces: has a span for each phase of a request; None for none.
    """

    def __init__(
        self,
        registry: Registry,
        scheduler: Scheduler,
        admission: Admission,
        threads: Executor,
        *,
        max_text_chars: int,
        observer: Observer | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._registry = registry
        self._scheduler = scheduler
        self._admission = admission
        self._threads = threads
        self._max_text_chars = max_text_chars
        self._observer = observer or Observer()
        self._traces = traces or Traces(None)
        self._num_under_way = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    async def score(self, request: ScoreRequest, call: Call) -> ScoreResponse:
        """POST /score."""
        return await self._answer(request, call, prepare_score, finish_score)

    async def rank(self, request: RankRequest, call: Call) -> RankResponse:
        """POST /rank."""
        return await self._answer(request, call, prepare_rank, finish_rank)

    async def compare(self, request: CompareRequest, call: Call) -> CompareResponse | CompareListResponse:
        """POST /compare."""
        return await self._answer(request, call, prepare_compare, finish_compare)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """What is inside is a request taken on: a server that ends waits for it."""
        self._num_under_way += 1
        self._is_idle.clear()
        try:
            yield
        finally:
            self._num_under_way -= 1
            if self._num_under_way == 0:
                self._is_idle.set()

    @property
    def num_under_way(self) -> int:
        """Requests taken on and not yet answered."""
        return self._num_under_way

    async def wait_idle(self) -> None:
        """Wait until no request is under way."""
        await self._is_idle.wait()

    async def _answer(
        self,
        request: _Request,
        call: Call,
        prepare: Callable[[ScoringContext, _Request], Any],
        finish: Callable[..., _Response],
    ) -> _Response:
        """The call itself.

        Raises:
            DeadlineExceeded: the deadline passed, wherever the request was; it has left the queue.
            QuorumError: whatever else keeps it from an answer.
        """
        self._admission.check_room()  # before the tokeniser's work, not only after
        try:
            with self.under_way(), self._registry.use(request.ensemble) as ensemble:
                async with keep_deadline(call.deadline_s):
                    response: _Response = await self._score(request, call, ensemble, prepare, finish)
        except DeadlineExceeded:
            self._observer.rejected("deadline")
            raise
        except asyncio.CancelledError:
            self._observer.rejected("disconnected")
            raise
        return response

    async def _score(
        self,
        request: _Request,
        call: Call,
        ensemble: Ensemble,
        prepare: Callable[[ScoringContext, _Request], Any],
        finish: Callable[..., _Response],
    ) -> _Response:
        self._check_text(request)
        self._traces.mark(call.request_id)
        with self._traces.span("tokenize", ensemble=ensemble.name, version=ensemble.version):
            work = await self._in_thread(_tokenize, prepare, ensemble, request)
        self._observer.tokenized(ensemble.name, work.elapsed_s)
        with self._traces.span("compute", sequences=len(work.sequences), tokens=sum(map(len, work.sequences))):
            scores = await self._scheduler.submit(
                ensemble.version, work.sequences, work.units, ensemble.loaded.token_budget
            )
        if not len(scores.raw):  # none of its texts could be scored
            missing = np.full((ensemble.loaded.num_members, len(work.sequences)), np.nan, np.float32)
            scores = replace(scores, raw=missing)
        with self._traces.span("finish"):
            response: _Response = await self._in_thread(
                _finish, finish, ensemble.context, work, scores, call.request_id
            )
        self._observer.answered(ensemble.context, work.prepared, scores.raw, response)
        return response

    def _check_text(self, request: ScoreRequest | RankRequest | CompareRequest) -> None:
        try:
            check_text(request, self._max_text_chars)
        except RequestTooLarge:
            self._observer.rejected("too_large")
            raise

    async def _in_thread(self, function: Callable[..., _Result], *args: Any) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def _tokenize(prepare: Callable[[ScoringContext, _Request], Any], ensemble: Ensemble, request: _Request) -> _Work:
    started_s = time.perf_counter()
    prepared = prepare(ensemble.context, request)
    sequences = [np.array(ids, dtype=np.int32) for ids in prepared.sequences]
    loaded = ensemble.loaded
    units = cut_units(sequences, loaded.token_budget, shares_prefixes=loaded.shares_prefixes)
    return _Work(prepared, sequences, units, time.perf_counter() - started_s)


def _finish(
    finish: Callable[..., _Response], context: ScoringContext, work: _Work, scores: JobScores, request_id: str
) -> _Response:
    prepared = mark_failed(work.prepared, scores.failed) if scores.failed else work.prepared
    return finish(context, prepared, scores.raw, computed_tokens=scores.computed_tokens, response_id=request_id)
