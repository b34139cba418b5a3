"""A request's body: read under a limit, parsed and validated in a thread, dropped when its client has gone.

    bytes  --limit-->  JSON  --item count-->  typed request  -->  endpoint, raced against the client's disconnect

FastAPI alone would parse with the event loop held (half a second for 8 MiB of token ids), accept NaN and recurse
without a bound; as a route class, the endpoints' signatures and their OpenAPI entries stay FastAPI's. Even in a thread,
parser and validation hold the interpreter's lock, each for its shorter time; so sizes are checked between them, and
validation ends at the first bad item of a list. Any content type is taken for JSON, so that a bare `curl -d` works.
Knows nothing of scoring.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from quorum_client.errors import DeadlineExceeded, MalformedJSON, RequestTooLarge
from quorum_server.admission import Admission
from quorum_server.deadline import deadline_of, keep_deadline
from quorum_server.errors import invalid_request
from quorum_server.limits import Limits, check_items
from quorum_server.metrics import Metrics

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]

# Below this, parsing takes less time than the way to a thread and back.
_INLINE_BYTES = 64 * 1024
_CLIENT_CLOSED_REQUEST = 499


class JsonRoute(APIRoute):
    """A route whose one body parameter is a pydantic model."""

    def get_route_handler(self) -> _Handler:
        """Wrap FastAPI's handler; see the module's text."""
        handle = super().get_route_handler()
        assert self.body_field is not None
        model: type[BaseModel] = self.body_field.field_info.annotation  # type: ignore[assignment]

        async def read_then_handle(request: Request) -> Response:
            metrics: Metrics = request.app.state.metrics
            admission: Admission = request.app.state.runtime.admission
            with metrics.in_flight.track_inprogress(), admission.hold_bytes() as hold:
                try:
                    async with keep_deadline(deadline_of(request)):
                        value = await _read_value(request, model, hold)
                except ClientDisconnect:
                    metrics.rejected("disconnected")
                    return Response(status_code=_CLIENT_CLOSED_REQUEST)  # nobody reads it
                except DeadlineExceeded:
                    metrics.rejected("deadline")
                    raise
                except RequestTooLarge:
                    metrics.rejected("too_large")
                    raise
                return await _race_disconnect(request, handle(_ParsedRequest(request, value)))

        return read_then_handle


class _ParsedRequest(Request):
    """Hands FastAPI a body that is already a model; validating a model again costs nothing."""

    def __init__(self, request: Request, value: BaseModel) -> None:
        headers = [(name, content) for name, content in request.scope["headers"] if name != b"content-type"]
        super().__init__({**request.scope, "headers": [*headers, (b"content-type", b"application/json")]})
        self._value = value

    async def body(self) -> bytes:
        return b"parsed"

    async def json(self) -> Any:
        return self._value


async def _read_value(request: Request, model: type[BaseModel], hold: Callable[[int], None]) -> BaseModel:
    limits: Limits = request.app.state.limits
    body = await _read_body(request, limits.max_body_bytes, hold)
    if len(body) <= _INLINE_BYTES:
        return parse_body(body, model, limits.max_items)
    return await asyncio.to_thread(parse_body, body, model, limits.max_items)


async def _read_body(request: Request, max_bytes: int, hold: Callable[[int], None]) -> bytes:
    """The body; refused by its declared length, or, where that is missing or wrong, as soon as it is too long."""
    declared = request.headers.get("content-length", "")
    too_large = RequestTooLarge(f"the body is larger than {max_bytes} bytes, the most that this server takes")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise too_large
    chunks = bytearray()
    async for chunk in request.stream():
        hold(len(chunk))
        chunks += chunk
        if len(chunks) > max_bytes:
            raise too_large
    return bytes(chunks)


def parse_body(body: bytes, model: type[BaseModel], max_items: int) -> BaseModel:
    """Bytes to a typed request.

    Raises:
        MalformedJSON: not JSON in UTF-8, or nested too deep.
        RequestTooLarge: more than `max_items` items.
        InvalidRequest: not of the model's shape.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        try:
            value = _parse_with_surrogates(body)
        except (ValueError, RecursionError):
            raise MalformedJSON(f"the body is not JSON in UTF-8: {error}") from error
    check_items(value, max_items)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_context=False, include_input=False)) from None


def _parse_with_surrogates(body: bytes) -> Any:
    """What the strict parser refuses for lone surrogates alone: they are an item's own error, not its neighbours'.

    Raises:
        ValueError, RecursionError: something else is wrong with it too.
    """
    value = json.loads(body.decode("utf-8"))
    without = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    from_json(without, allow_inf_nan=False)
    return value


async def _race_disconnect(request: Request, answer: Coroutine[Any, Any, Response]) -> Response:
    """The answer, unless the client goes first: then its work is cancelled, and so leaves the queue."""
    working = asyncio.create_task(answer)
    leaving = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=_CLIENT_CLOSED_REQUEST)  # nobody reads it
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait({working, leaving})


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
