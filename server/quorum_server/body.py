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
import functools
import json
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from quorum_client.errors import DeadlineExceeded, MalformedJSON, RequestTooLarge
from quorum_server.admission import Admission, QueueFull
from quorum_server.deadline import deadline_of, keep_deadline
from quorum_server.errors import invalid_request
from quorum_server.limits import Limits, check_items
from quorum_server.metrics import Metrics
from quorum_server.patience import Patience

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]
_Hold = Callable[[int], None]

# Below this, parsing takes less time than the way to a thread and back.
_INLINE_BYTES = 64 * 1024
_CLIENT_CLOSED_REQUEST = 499


class JsonRoute(APIRoute):
    """A route whose one body parameter is a pydantic model."""

    patience_s: ClassVar[float] = 0.0
    """Seconds from arrival for which a body waits where too many bytes are held, before it is refused."""

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
                        is_patient = self.patience_s > 0
                        hold_read = await _hold_ahead(request, hold, self.patience_s) if is_patient else hold
                        value = await _read_value(request, model, hold_read)
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

        async def count_refused(request: Request) -> Response:
            try:
                return await read_then_handle(request)
            except QueueFull as error:
                request.app.state.metrics.rejected(error.reason)
                raise

        return count_refused


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


async def _hold_ahead(request: Request, hold: _Hold, patience_s: float) -> _Hold:
    """Hold all of the body before it is read, as soon as there is room; gives what then counts what is read.

    At once, since bodies that waited with their first half in memory could wait for each other. A body that does not
    declare its length is not waited for.
    """
    declared = _declared_bytes(request)
    _check_size(declared, request.app.state.limits.max_body_bytes)

    async def try_to_hold() -> None:
        hold(declared)

    await Patience(request.app.state.runtime, request.state.arrived_s + patience_s).wait_for(try_to_hold)
    num_read = 0

    def hold_beyond(num_bytes: int) -> None:
        nonlocal num_read
        beyond_before = max(num_read - declared, 0)
        num_read += num_bytes
        hold(max(num_read - declared, 0) - beyond_before)

    return hold_beyond


def _declared_bytes(request: Request) -> int:
    """The body's length by its header; 0 where that is missing or wrong."""
    declared = request.headers.get("content-length", "")
    return int(declared[:20]) if declared.isascii() and declared.isdigit() else 0


def _check_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise RequestTooLarge(f"the body is larger than {max_bytes} bytes, the most that this server takes")


async def _read_value(request: Request, model: type[BaseModel], hold: _Hold) -> BaseModel:
    limits: Limits = request.app.state.limits
    body = await _read_body(request, limits.max_body_bytes, hold)
    if len(body) <= _INLINE_BYTES:
        return parse_body(body, model, limits.max_items)
    return await asyncio.to_thread(parse_body, body, model, limits.max_items)


async def _read_body(request: Request, max_bytes: int, hold: _Hold) -> bytes:
    """The body; refused by its declared length, or, where that is missing or wrong, as soon as it is too long."""
    _check_size(_declared_bytes(request), max_bytes)
    chunks = bytearray()
    async for chunk in request.stream():
        hold(len(chunk))
        chunks += chunk
        _check_size(len(chunks), max_bytes)
    return bytes(chunks)


def parse_body(body: bytes, model: type[BaseModel], max_items: int) -> BaseModel:
    """Bytes to a typed request.

    Of a model that ignores what it does not declare, that is dropped unseen, NaN included: it is the client's own.

    Raises:
        MalformedJSON: not JSON in UTF-8, or nested too deep.
        RequestTooLarge: more than `max_items` items.
        InvalidRequest: not of the model's shape.
    """
    used = _fields_used(model)
    try:
        value = from_json(body, allow_inf_nan=used is not None)
    except ValueError as error:
        try:
            value = _parse_with_surrogates(body, allow_inf_nan=used is not None)
        except (ValueError, RecursionError):
            raise MalformedJSON(f"the body is not JSON in UTF-8: {error}") from error
    if used is not None and isinstance(value, dict):
        value = {name: content for name, content in value.items() if name in used}
    check_items(value, max_items)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_context=False, include_input=False)) from None


@functools.cache
def _fields_used(model: type[BaseModel]) -> frozenset[str] | None:
    """Names that a model reads from a body; None where it refuses all others."""
    if model.model_config.get("extra") != "ignore":
        return None
    names: set[str] = set()
    for name, field in model.model_fields.items():
        alias = field.validation_alias or name
        names.update(str(one) for one in alias.choices) if isinstance(alias, AliasChoices) else names.add(str(alias))
    return frozenset(names)


def _parse_with_surrogates(body: bytes, *, allow_inf_nan: bool) -> Any:
    """What the strict parser refuses for lone surrogates alone: they are an item's own error, not its neighbours'.

    Raises:
        ValueError, RecursionError: something else is wrong with it too.
    """
    value = json.loads(body.decode("utf-8"))
    without = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    from_json(without, allow_inf_nan=allow_inf_nan)
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
