"""Requests of the HTTP client as pure functions, shared by its sync and its async half.

    arguments  --score_call, …-->  Call  --Endpoint.request-->  httpx.Request

Sends nothing and knows no clock: answers are `_reply`'s, trying again is `_retry`'s.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypedDict, TypeVar

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from quorum_client.ensemble_types import EnsembleList
from quorum_client.errors import InvalidRequest
from quorum_client.modes import Mode
from quorum_client.types import (
    Center,
    CompareListResponse,
    ComparePair,
    CompareRequest,
    CompareResponse,
    Prompt,
    RankRequest,
    RankResponse,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
    Truncate,
)

CONNECT_TIMEOUT_S = 5.0

AnswerT = TypeVar("AnswerT", bound=BaseModel)
PromptLike = Prompt | Sequence[Mapping[str, str]]


class ScoringKwargs(TypedDict, total=False):
    """Keyword options of every scoring method; what is left out is the server's default."""

    ensemble: str | None
    truncate: Truncate | None


class RewardKwargs(ScoringKwargs, total=False):
    """Keyword options of `score` and `rank`: how member scores become rewards."""

    mode: Mode | None
    beta: float | None
    normalize: bool


@dataclass(frozen=True, slots=True)
class Call(Generic[AnswerT]):
    """One call of the API, before any attempt at it.

    `verify` says whether a well-formed answer also answers this request (as many results as inputs, say).
    """

    method: Literal["GET", "POST"]
    path: str
    answer_type: type[AnswerT]
    body: bytes | None = None
    verify: Callable[[AnswerT], bool] | None = None


class Readiness(BaseModel):
    """Answer of GET /readyz, of which only the status counts."""

    model_config = ConfigDict(extra="ignore")


def _validated(model: type[AnswerT], fields: Mapping[str, object]) -> AnswerT:
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise InvalidRequest(describe_invalid(error)) from error


def describe_invalid(error: ValidationError) -> str:
    """The first problem as `where: what`; holds none of the user's text."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _plain(items: Sequence[object]) -> list[object]:
    # pydantic takes its own models and dicts, but no other mappings.
    return [dict(item) if isinstance(item, Mapping) else item for item in items]


def _post(
    path: str, request: BaseModel, answer_type: type[AnswerT], verify: Callable[[AnswerT], bool] | None = None
) -> Call[AnswerT]:
    # Not pydantic's own JSON: it cannot encode a lone surrogate. Escaped, it reaches the server, which answers for it.
    body = json.dumps(request.model_dump(exclude_none=True), allow_nan=False, separators=(",", ":"))
    return Call("POST", path, answer_type, body.encode(), verify)


def make_score_request(
    inputs: Sequence[ScoreItem | Mapping[str, object]], center: Center, options: RewardKwargs
) -> ScoreRequest:
    """The body of POST /score. Raises: InvalidRequest: an input or option has a wrong shape or value."""
    return _validated(ScoreRequest, {"inputs": _plain(inputs), "center": center, **options})


def score_call(
    inputs: Sequence[ScoreItem | Mapping[str, object]], center: Center, options: RewardKwargs
) -> Call[ScoreResponse]:
    """POST /score; raises as `make_score_request`."""
    request = make_score_request(inputs, center, options)
    return _post("/score", request, ScoreResponse, lambda answer: len(answer.results) == len(request.inputs))


def rank_call(
    prompt: PromptLike,
    candidates: Sequence[str],
    reference: str | None,
    center: Center | None,
    options: RewardKwargs,
) -> Call[RankResponse]:
    """POST /rank. Raises: InvalidRequest: an argument has a wrong shape or value."""
    fields = {"prompt": prompt, "candidates": candidates, "reference": reference, "center": center, **options}
    request = _validated(RankRequest, fields)
    indices = list(range(len(request.candidates)))

    def is_complete(answer: RankResponse) -> bool:
        return (
            len(answer.results) == len(indices) and sorted(answer.order) == indices and answer.best == answer.order[0]
        )

    return _post("/rank", request, RankResponse, is_complete)


def compare_call(prompt: PromptLike, a: str, b: str, options: ScoringKwargs) -> Call[CompareResponse]:
    """POST /compare for one pair. Raises: InvalidRequest: an argument has a wrong shape or value."""
    request = _validated(CompareRequest, {"prompt": prompt, "a": a, "b": b, **options})
    return _post("/compare", request, CompareResponse)


def compare_pairs_call(
    pairs: Sequence[ComparePair | Mapping[str, object]], options: ScoringKwargs
) -> Call[CompareListResponse]:
    """POST /compare for a list of pairs. Raises: InvalidRequest: a pair has a wrong shape or value."""
    request = _validated(CompareRequest, {"pairs": _plain(pairs), **options})
    num_pairs = len(request.as_pairs())
    return _post("/compare", request, CompareListResponse, lambda answer: len(answer.results) == num_pairs)


ENSEMBLES_CALL: Call[EnsembleList] = Call("GET", "/v1/ensembles", EnsembleList)
READY_CALL: Call[Readiness] = Call("GET", "/readyz", Readiness)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server is and what opens it; the key is neither in `url` nor in the repr."""

    url: httpx.URL
    authorization: str | None = field(repr=False)

    @classmethod
    def parse(cls, base_url: str, api_key: str | None) -> Endpoint:
        """Split `base_url` into address and credentials.

        Args:
            base_url: http(s) address; may carry a path, and a key as the password of basic auth.
            api_key: sent as a bearer token; goes before a key in the address.

        Raises:
            InvalidRequest: not an http(s) address, or a key that cannot travel in a header.
        """
        try:
            url = httpx.URL(base_url)
        except (httpx.InvalidURL, TypeError, ValueError):
            # Without the parser's reason, in message and chain: it quotes the address, which may hold a key.
            raise InvalidRequest(
                "base_url is not an address; a key in it must be percent-encoded, or be given as api_key"
            ) from None
        if url.scheme not in ("http", "https") or not url.host:
            raise InvalidRequest("base_url must look like http://host:port or https://host")
        authorization = None
        if api_key is not None:
            if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
                raise InvalidRequest("api_key must be printable ASCII without spaces")
            authorization = f"Bearer {api_key}"
        elif url.userinfo:
            pair = f"{url.username}:{url.password}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        bare = url.copy_with(username=None, password=None, fragment=None, path=url.path.rstrip("/") or "/")
        return cls(bare, authorization)

    def request(
        self,
        http: httpx.Client | httpx.AsyncClient,
        call: Call[AnswerT],
        *,
        request_id: str,
        remaining_s: float,
    ) -> httpx.Request:
        """The HTTP request for one attempt, with what is left of the deadline as header and as timeouts.

        Args:
            http: adds its own default headers; sends nothing here.
            call: what to ask.
            request_id: the same for every attempt of a call, so that a server's log tells retries from calls.
            remaining_s: seconds until the caller stops waiting; > 0.
        """
        headers = {
            "accept": "application/json",
            "x-request-id": request_id,
            "x-quorum-timeout-ms": str(max(1, int(remaining_s * 1000))),
        }
        if call.body is not None:
            headers["content-type"] = "application/json"
        if self.authorization is not None:
            headers["authorization"] = self.authorization
        return http.build_request(
            call.method,
            self.url.copy_with(path=self.url.path.rstrip("/") + call.path),
            headers=headers,
            content=call.body,
            timeout=httpx.Timeout(remaining_s, connect=min(remaining_s, CONNECT_TIMEOUT_S)),
        )
