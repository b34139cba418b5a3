"""The asynchronous HTTP client of a Quorum server: `Client` with `await`.

    arguments  --_request-->  httpx  --_reply-->  typed answer, or one QuorumError

Only the asyncio loop that sends, waits and tries again lives here; everything else is shared with `Client`.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack

import httpx

from quorum_client._reply import Reply, is_unready, parse_reply, transport_errors
from quorum_client._request import (
    ENSEMBLES_CALL,
    READY_CALL,
    AnswerT,
    Call,
    Endpoint,
    PromptLike,
    RewardKwargs,
    ScoringKwargs,
    compare_call,
    compare_pairs_call,
    rank_call,
    score_call,
)
from quorum_client._retry import Budget
from quorum_client.errors import QuorumError
from quorum_client.types import (
    Center,
    CompareListResponse,
    ComparePair,
    CompareResponse,
    EnsembleInfo,
    RankResponse,
    ScoreItem,
    ScoreResponse,
)


class AsyncClient:
    """A Quorum server, for asyncio; the arguments and errors are those of `Client`.

    async with AsyncClient("http://127.0.0.1:8000") as client:
        answers = await asyncio.gather(*(client.score(batch) for batch in batches))
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        deadline_s: float = 60.0,
        max_retries: int = 4,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        self._endpoint = Endpoint.parse(base_url, api_key)
        self._deadline_s = deadline_s
        self._max_retries = max_retries
        self._http = httpx.AsyncClient() if http_client is None else http_client
        self._owns_http = http_client is None
        self._clock = time.monotonic
        self._sleep = asyncio.sleep
        self._jitter = random.random

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._endpoint.url)!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """As `Client.close`."""
        if self._owns_http:
            await self._http.aclose()

    async def score(
        self,
        inputs: Sequence[ScoreItem | Mapping[str, object]],
        *,
        center: Center = "none",
        deadline_s: float | None = None,
        **options: Unpack[RewardKwargs],
    ) -> ScoreResponse:
        """As `Client.score`."""
        return await self._run(score_call(inputs, center, options), deadline_s)

    async def rank(
        self,
        prompt: PromptLike,
        candidates: Sequence[str],
        *,
        reference: str | None = None,
        center: Center | None = None,
        deadline_s: float | None = None,
        **options: Unpack[RewardKwargs],
    ) -> RankResponse:
        """As `Client.rank`."""
        return await self._run(rank_call(prompt, candidates, reference, center, options), deadline_s)

    async def compare(
        self, prompt: PromptLike, a: str, b: str, *, deadline_s: float | None = None, **options: Unpack[ScoringKwargs]
    ) -> CompareResponse:
        """As `Client.compare`."""
        return await self._run(compare_call(prompt, a, b, options), deadline_s)

    async def compare_pairs(
        self,
        pairs: Sequence[ComparePair | Mapping[str, object]],
        *,
        deadline_s: float | None = None,
        **options: Unpack[ScoringKwargs],
    ) -> CompareListResponse:
        """As `Client.compare_pairs`."""
        return await self._run(compare_pairs_call(pairs, options), deadline_s)

    async def ensembles(self, *, deadline_s: float | None = None) -> list[EnsembleInfo]:
        """As `Client.ensembles`."""
        return (await self._run(ENSEMBLES_CALL, deadline_s)).ensembles

    async def is_ready(self, *, deadline_s: float | None = None) -> bool:
        """As `Client.is_ready`."""
        try:
            await self._run(READY_CALL, deadline_s, max_retries=0)
        except QuorumError as error:
            if is_unready(error):
                return False
            raise
        return True

    async def _run(self, call: Call[AnswerT], deadline_s: float | None, *, max_retries: int | None = None) -> AnswerT:
        budget = Budget(
            deadline_s=self._deadline_s if deadline_s is None else deadline_s,
            max_retries=self._max_retries if max_retries is None else max_retries,
            clock=self._clock,
            jitter=self._jitter,
        )
        request_id = uuid.uuid4().hex
        while True:
            try:
                return parse_reply(call, await self._send(call, budget, request_id))
            except QuorumError as error:
                delay_s = budget.delay_after(error)
            await self._sleep(delay_s)

    async def _send(self, call: Call[AnswerT], budget: Budget, request_id: str) -> Reply:
        remaining_s = budget.remaining_s()
        request = self._endpoint.request(self._http, call, request_id=request_id, remaining_s=remaining_s)
        with transport_errors(self._endpoint.url, request_id):
            async with asyncio.timeout(remaining_s):
                response = await self._http.send(request)
        return Reply(response.status_code, response.headers, response.content)
