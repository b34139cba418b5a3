"""The one scoring call behind every route: text in, rewards out.

    request  --prepare (thread)-->  token ids  --scheduler-->  raw scores  --finish (thread)-->  response

The event loop only waits. Knows nothing of HTTP; the deadline and the request id come as plain values.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

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
    prepare_compare,
    prepare_rank,
    prepare_score,
)
from quorum_server.deadline import keep_deadline
from quorum_server.engine.messages import TokenIds
from quorum_server.events import Observer
from quorum_server.limits import check_text
from quorum_server.registry import Registry
from quorum_server.scheduler import Scheduler

_Request = TypeVar("_Request", ScoreRequest, RankRequest, CompareRequest)
_Response = TypeVar("_Response")


@dataclass(frozen=True, slots=True)
class Call:
    """What a request brings besides its body. deadline_s: on the event loop's clock; None for none."""

    request_id: str
    deadline_s: float | None


class ScoringService:
    """Answers scoring requests.

    Args:
        registry: the loaded ensembles.
        scheduler: the way to the engine.
        threads: runs tokenising and the arithmetic after the engine.
        max_text_chars: most characters to tokenise for one request.
        observer: is told of what was answered.
    """

    def __init__(
        self,
        registry: Registry,
        scheduler: Scheduler,
        threads: Executor,
        *,
        max_text_chars: int,
        observer: Observer | None = None,
    ) -> None:
        self._registry = registry
        self._scheduler = scheduler
        self._threads = threads
        self._max_text_chars = max_text_chars
        self._observer = observer or Observer()

    async def score(self, request: ScoreRequest, call: Call) -> ScoreResponse:
        """POST /score."""
        return await self._answer(request, call, prepare_score, finish_score)

    async def rank(self, request: RankRequest, call: Call) -> RankResponse:
        """POST /rank."""
        return await self._answer(request, call, prepare_rank, finish_rank)

    async def compare(self, request: CompareRequest, call: Call) -> CompareResponse | CompareListResponse:
        """POST /compare."""
        return await self._answer(request, call, prepare_compare, finish_compare)

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
        async with keep_deadline(call.deadline_s):
            ensemble = self._registry.get(request.ensemble)
            check_text(request, self._max_text_chars)
            self._scheduler.check_room()  # before the tokeniser's work, not only after
            started_s = time.perf_counter()
            prepared, sequences = await self._in_thread(_tokenize, prepare, ensemble.context, request)
            self._observer.tokenized(ensemble.name, time.perf_counter() - started_s)
            scores = await self._scheduler.submit(ensemble.version, sequences)
            response: Any = await self._in_thread(
                lambda: finish(
                    ensemble.context,
                    prepared,
                    scores.raw,
                    computed_tokens=scores.computed_tokens,
                    response_id=call.request_id,
                )
            )
        self._observer.answered(ensemble.context, prepared, scores.raw, response)
        answer: _Response = response
        return answer

    async def _in_thread(self, function: Callable[..., _Response], *args: Any) -> _Response:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def _tokenize(
    prepare: Callable[[ScoringContext, _Request], Any], context: ScoringContext, request: _Request
) -> tuple[PreparedRewards | PreparedComparisons, list[TokenIds]]:
    prepared: PreparedRewards | PreparedComparisons = prepare(context, request)
    return prepared, [np.array(ids, dtype=np.int32) for ids in prepared.sequences]
