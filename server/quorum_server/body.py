"""A request's body: read under a limit, parsed and validated off the event loop, dropped when its client has gone.

    bytes  --limit-->  JSON  --item count-->  typed request  -->  endpoint, raced against the client's disconnect

FastAPI alone would parse with the event loop held (half a second for 8 MiB of token ids), accept NaN and recurse
without a bound; as a route class, the endpoints' signatures and their OpenAPI entries stay FastAPI's. Any content type
is taken for JSON, so that a bare `curl -d` works. Knows nothing of scoring.
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

from quorum_client.errors import InvalidRequest, MalformedJSON, RequestTooLarge
from quorum_server.errors import invalid_request
from quorum_server.limits import Limits, check_items

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
            limits: Limits = request.app.state.limits
            body = await _read_body(request, limits.max_body_bytes)
            if len(body) <= _INLINE_BYTES:
                value = parse_body(body, model, limits.max_items)
            else:
                value = await asyncio.to_thread(parse_body, body, model, limits.max_items)
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


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """The body; refused by its declared length, or, where that is missing or wrong, as soon as it is too long."""
    declared = request.headers.get("content-length", "")
    too_large = RequestTooLarge(f"the body is larger than {max_bytes} bytes, the most that this server takes")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise too_large
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > max_bytes:
            raise too_large
    return bytes(chunks)


def parse_body(body: bytes, model: type[BaseModel], max_items: int) -> BaseModel:
    """Bytes to a typed request.

    Raises:
        MalformedJSON: not JSON in UTF-8, or nested too deep.
        RequestTooLarge: more than `max_items` items.
        InvalidRequest: not of the model's shape, or with a lone surrogate.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        if _holds_lone_surrogate(body):
            raise InvalidRequest(
                "the body holds a lone surrogate (half of a \\ud83d\\ude00 pair), which is no character"
            ) from error
        raise MalformedJSON(f"the body is not JSON in UTF-8: {error}") from error
    check_items(value, max_items)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_context=False, include_input=False)) from None


def _holds_lone_surrogate(body: bytes) -> bool:
    """Whether the standard library reads what the strict parser refused: lone surrogates are the difference."""
    try:
        json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


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
