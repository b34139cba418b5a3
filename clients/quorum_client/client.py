"""The synchronous HTTP client of a Quorum server.

    arguments  --_request-->  httpx  --_reply-->  typed answer, or one QuorumError

Only the loop that sends, waits and tries again lives here; see `_request`, `_reply` and `_retry` for the rest.
Knows no torch: scoring a bundle in this process is `quorum_model`'s.
"""

from __future__ import annotations

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

DEFAULT_DEADLINE_S = 60.0


class Client:
    """A Quorum server, with pooled connections; safe to share between threads.

        with Client("http://127.0.0.1:8000") as client:
            answer = client.score([{"prompt": "Hi!", "response": "Hello."}], mode="lcb")
            print(answer.results[0].score, answer.results[0].std)

    Every method takes `deadline_s` for that call, and raises a `QuorumError`: `InvalidRequest` before anything is
    sent, the server's own error, `ConnectionFailed`, `UnexpectedResponse`, or `DeadlineExceeded`.

    Args:
        base_url: the server's address; may carry a path, and a key as in `http://x:KEY@host`.
        api_key: sent as a bearer token.
        deadline_s: seconds for a whole call with its retries; the server is told, and drops work that is too late.
            Checked between reads of the body; a server that drips its headers byte by byte restarts the wait with
            each read and can hold a call longer (`AsyncClient` cancels it on time).
        max_retries: further attempts after lost connections and HTTP 429, 500, 502 and 503.
        http_client: an httpx client to send through (own certificates, proxies); closing it stays with the caller.

    Raises:
        InvalidRequest: `base_url` or `api_key` cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        deadline_s: float = DEFAULT_DEADLINE_S,
        max_retries: int = 4,
        http_client: httpx.Client | None = None,
    ) -> None:
        self._endpoint = Endpoint.parse(base_url, api_key)
        self._deadline_s = deadline_s
        self._max_retries = max_retries
        self._http = httpx.Client() if http_client is None else http_client
        self._owns_http = http_client is None
        self._clock = time.monotonic
        self._sleep = time.sleep
        self._jitter = random.random

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._endpoint.url)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections; a `http_client` that was passed in stays open."""
        if self._owns_http:
            self._http.close()

    def score(
        self,
        inputs: Sequence[ScoreItem | Mapping[str, object]],
        *,
        center: Center = "none",
        deadline_s: float | None = None,
        **options: Unpack[RewardKwargs],
    ) -> ScoreResponse:
        """Score items: POST /score. A bad item has its `error` set and does not fail its neighbours.

        Args:
            inputs: items, or mappings with their fields.
            center: none, group (relative to the other candidates of the prompt) or reference.
            deadline_s: seconds for this call; the client's if None.
            options: `ensemble`, `mode`, `beta`, `normalize`, `truncate`; the server's defaults where left out.

        Returns:
            One result per input, in the order of `inputs`.
        """
        return self._run(score_call(inputs, center, options), deadline_s)

    def rank(
        self,
        prompt: PromptLike,
        candidates: Sequence[str],
        *,
        reference: str | None = None,
        center: Center | None = None,
        deadline_s: float | None = None,
        **options: Unpack[RewardKwargs],
    ) -> RankResponse:
        """Order the candidates of one prompt, best first: POST /rank.

        Args:
            prompt: one user turn, or a dialogue.
            candidates: responses to compare.
            reference: a reference response, for center = reference.
            center: None means group (none for a single candidate).
            deadline_s: seconds for this call; the client's if None.
            options: as for `score`.
        """
        return self._run(rank_call(prompt, candidates, reference, center, options), deadline_s)

    def compare(
        self, prompt: PromptLike, a: str, b: str, *, deadline_s: float | None = None, **options: Unpack[ScoringKwargs]
    ) -> CompareResponse:
        """Probability that response `a` is better than `b`: POST /compare. Options: `ensemble`, `truncate`."""
        return self._run(compare_call(prompt, a, b, options), deadline_s)

    def compare_pairs(
        self,
        pairs: Sequence[ComparePair | Mapping[str, object]],
        *,
        deadline_s: float | None = None,
        **options: Unpack[ScoringKwargs],
    ) -> CompareListResponse:
        """As `compare`, for many pairs in one request; one result per pair, in order."""
        return self._run(compare_pairs_call(pairs, options), deadline_s)

    def ensembles(self, *, deadline_s: float | None = None) -> list[EnsembleInfo]:
        """The ensembles that the server has loaded: GET /v1/ensembles."""
        return self._run(ENSEMBLES_CALL, deadline_s).ensembles

    def is_ready(self, *, deadline_s: float | None = None) -> bool:
        """Whether the server can score now: one attempt at GET /readyz. False too where it cannot be reached."""
        try:
            self._run(READY_CALL, deadline_s, max_retries=0)
        except QuorumError as error:
            if is_unready(error):
                return False
            raise
        return True

    def _run(self, call: Call[AnswerT], deadline_s: float | None, *, max_retries: int | None = None) -> AnswerT:
        budget = Budget(
            deadline_s=self._deadline_s if deadline_s is None else deadline_s,
            max_retries=self._max_retries if max_retries is None else max_retries,
            clock=self._clock,
            jitter=self._jitter,
        )
        request_id = uuid.uuid4().hex
        while True:
            try:
                return parse_reply(call, self._send(call, budget, request_id))
            except QuorumError as error:
                delay_s = budget.delay_after(error)
            self._sleep(delay_s)

    def _send(self, call: Call[AnswerT], budget: Budget, request_id: str) -> Reply:
        request = self._endpoint.request(self._http, call, request_id=request_id, remaining_s=budget.remaining_s())
        with transport_errors(self._endpoint.url, request_id):
            response = self._http.send(request, stream=True)
            try:
                # Each read has its own timeout; the sum is checked here, or a dripping server could hold us for ever.
                chunks = []
                for chunk in response.iter_bytes():
                    budget.remaining_s()
                    chunks.append(chunk)
            finally:
                response.close()
        return Reply(response.status_code, response.headers, b"".join(chunks))
