"""Every error as one JSON shape: `{"error": {"code", "message", "retryable", "request_id"}}`.

    exception  --handler-->  QuorumError  --error_response-->  response

No message holds a user's text; that of an internal error is hidden and logged. Knows nothing of routes or scoring.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from quorum_client.errors import InternalError, InvalidRequest, NotReady, QuorumError, Unauthorized
from quorum_client.types import ErrorBody, ErrorResponse
from quorum_server.request_record import current_record

logger = logging.getLogger(__name__)

_MAX_PROBLEMS = 3
_UNREADY_RETRY_AFTER_S = 1.0
"""How soon to ask again while ensembles load or an engine restarts: it takes seconds to minutes."""
_FIELD_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")

# A browser asks its user for name and password, and so /docs and /ui open too. A header each: Chromium does not ask
# where one header has two of them.
_CHALLENGES = ('Basic realm="Quorum, the key as the password"', "Bearer")

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The body is not JSON",
        401: "No API key, or one that is not known",
        403: "The API key may not do this",
        404: "No such ensemble, version or route",
        409: "Something else decides this, or a later change came first",
        413: "The body, the number of items or the text is beyond a limit",
        422: "The request cannot be served as it is",
        429: "The queue is full; Retry-After says when to come back",
        500: "A defect; its details are in the server's log",
        503: "No engine can answer now",
        504: "The deadline passed",
    }.items()
}
"""The errors of a scoring route, for its OpenAPI entry."""


class RouteNotFound(QuorumError):
    """The path is none of this server's."""

    code = "not_found"
    status = 404


class MethodNotAllowed(QuorumError):
    """The path is known, but not with this method."""

    code = "method_not_allowed"
    status = 405


def error_response(error: QuorumError, request_id: str) -> Response:
    """The response that tells a client of `error`."""
    record = current_record()
    if record is not None:
        record.error = error.code
    message = error.message
    if error.status >= 500 and isinstance(error, InternalError):
        logger.error("request %s: %s", request_id, error.message, exc_info=error)
        message = "internal error; the server's log has its details under this request id"
    body = ErrorBody(code=error.code, message=message, retryable=error.retryable, request_id=request_id)
    headers = {}
    retry_after_s = error.retry_after_s
    if retry_after_s is None and isinstance(error, NotReady):
        retry_after_s = _UNREADY_RETRY_AFTER_S
    if retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(retry_after_s))
    response = Response(
        ErrorResponse(error=body).model_dump_json(),
        status_code=error.status,
        headers=headers,
        media_type="application/json",
    )
    for challenge in _CHALLENGES if isinstance(error, Unauthorized) else ():
        response.headers.append("www-authenticate", challenge)
    return response


def invalid_request(problems: Sequence[Any]) -> InvalidRequest:
    """What a pydantic validation found, naming fields and rules but none of the values.

    Args:
        problems: pydantic's list of error details.
    """
    texts = [f"{_describe_place(problem['loc'])}: {problem['msg']}" for problem in problems[:_MAX_PROBLEMS]]
    if len(problems) > _MAX_PROBLEMS:
        texts.append(f"and {len(problems) - _MAX_PROBLEMS} more")
    return InvalidRequest("; ".join(texts))


def _describe_place(place: Sequence[int | str]) -> str:
    parts = [str(part) for part in place if part not in ("body", "header")]
    # A field name that the user made up may hold anything; pydantic's names of union branches hold brackets.
    named = [part if _FIELD_NAME.fullmatch(part) else "?" for part in parts if "[" not in part]
    return ".".join(named) or "body"


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of the routes leave in the one shape; unexpected ones are the middleware's."""
    app.add_exception_handler(QuorumError, _handle_quorum_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)


async def _handle_quorum_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, QuorumError)
    return error_response(error, request.state.request_id)


async def _handle_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(invalid_request(error.errors()), request.state.request_id)


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: an unknown path (404), a wrong method (405)."""
    assert isinstance(error, HTTPException)
    ours: QuorumError
    if error.status_code == 404:
        ours = RouteNotFound("no such route; /docs lists them")
    elif error.status_code == 405:
        ours = MethodNotAllowed("this route does not take this method; /docs lists the routes")
    else:
        ours = InternalError(f"unexpected HTTP exception {error.status_code}: {error.detail}")
    response = error_response(ours, request.state.request_id)
    response.headers.update(error.headers or {})
    return response
