"""Answers of a server as pure functions, shared by the sync and the async client.

    status, headers, body  --parse_reply-->  typed answer | QuorumError

Receives nothing itself; what httpx raises meanwhile is put into the error tree by `transport_errors`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from pydantic import ValidationError

from quorum_client._request import AnswerT, Call, describe_invalid
from quorum_client.errors import (
    ERRORS_BY_CODE,
    ConnectionFailed,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotReady,
    QuorumError,
    UnexpectedResponse,
)
from quorum_client.types import ErrorResponse

RETRIED_STATUSES = frozenset({429, 500, 502, 503})


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one attempt."""

    status: int
    headers: httpx.Headers
    body: bytes


def parse_reply(call: Call[AnswerT], reply: Reply) -> AnswerT:
    """The typed answer of a 2xx reply.

    Raises:
        QuorumError: the error that the server named.
        UnexpectedResponse: the reply is not one that Quorum gives, or does not answer the request.
    """
    if not 200 <= reply.status < 300:
        raise parse_error(reply)
    try:
        answer = call.answer_type.model_validate_json(reply.body)
    except ValidationError as error:
        raise _unexpected(reply, f"is not a {call.answer_type.__name__}: {describe_invalid(error)}") from error
    if call.verify is not None and not call.verify(answer):
        raise _unexpected(reply, f"does not fit the request: {call.path} was asked for another number of results")
    return answer


def parse_error(reply: Reply) -> QuorumError:
    """The error that a reply outside 2xx stands for: by its code, else by its status, else `UnexpectedResponse`.

    The error keeps the reply's own code and status, so that an error newer than this client is still named.
    """
    try:
        body = ErrorResponse.model_validate_json(reply.body).error
    except ValidationError:
        return _unexpected(reply, "is not Quorum's; check the address")
    error_type = ERRORS_BY_CODE.get(body.code) or _error_type_by_status(reply.status)
    error = error_type(body.message, request_id=body.request_id, retry_after_s=retry_after_s(reply.headers))
    error.code = body.code
    error.status = reply.status
    error.retryable = body.retryable
    return error


def _error_type_by_status(status: int) -> type[QuorumError]:
    if status in (400, 422):
        return InvalidRequest
    by_status = {cls.status: cls for cls in ERRORS_BY_CODE.values()}
    return by_status.get(status) or (InvalidRequest if 400 <= status < 500 else InternalError)


def _unexpected(reply: Reply, problem: str) -> UnexpectedResponse:
    kind = reply.headers.get("content-type", "no content type")
    error = UnexpectedResponse(
        f"the answer (HTTP {reply.status}, {kind}) {problem}",
        request_id=reply.headers.get("x-request-id"),
        retry_after_s=retry_after_s(reply.headers),
    )
    error.status = reply.status
    # A proxy in front of a restarting server answers with a page of its own: worth another try.
    error.retryable = reply.status in RETRIED_STATUSES
    return error


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds by a Retry-After header; None where there is none in seconds. headers: any case, as httpx has them."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def is_unready(error: QuorumError) -> bool:
    """Whether an error of GET /readyz means "not now", rather than a wrong address or key."""
    return isinstance(error, NotReady | ConnectionFailed | DeadlineExceeded) or error.status in (502, 503)


@contextmanager
def transport_errors(url: httpx.URL, request_id: str) -> Iterator[None]:
    """Turn what httpx raises while sending or receiving into the error tree.

    A connection that is not made in time counts as a failed connection; any other timeout was set to what was left
    of the deadline, so it is the deadline that passed.
    """
    try:
        yield
    except (httpx.TimeoutException, TimeoutError) as error:
        if isinstance(error, httpx.ConnectTimeout):
            raise ConnectionFailed(f"cannot reach {url}: no connection in time", request_id=request_id) from error
        raise DeadlineExceeded(f"no answer from {url} before the deadline", request_id=request_id) from error
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise ConnectionFailed(f"cannot reach {url}: {reason}", request_id=request_id) from error
    except httpx.RequestError as error:
        raise UnexpectedResponse(f"unreadable answer from {url}: {error}", request_id=request_id) from error
