"""The outermost layer of every request: its id, its time of arrival, and, at its end, its log line and its count.

    request  --id, arrival, record-->  routes  --x-request-id-->  response, log line, metrics

Plain ASGI, so that neither bodies nor disconnects are buffered on the way. Knows nothing of routes.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quorum_client.errors import InternalError
from quorum_server.errors import error_response
from quorum_server.metrics import RUN_HEADER, Metrics
from quorum_server.playground import PATH as PLAYGROUND
from quorum_server.request_record import RequestRecord, start_record

access_log = logging.getLogger("quorum_server.access")

REQUEST_ID_HEADER = "x-request-id"
_SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")

_CLIENT_CLOSED_REQUEST = 499
# Probes and scrapes come every few seconds for weeks; their failures are logged like all others.
_FREQUENT = frozenset({"/healthz", "/readyz", "/metrics", PLAYGROUND})


class RequestContext:
    """Gives each request `state.request_id` and `state.arrived_s` (event loop's clock) and echoes the id.

    The id is the client's where it is up to 128 printable ASCII characters, else a new one. An unexpected exception of
    the routes becomes a 500 here.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID_HEADER, "")
        record = RequestRecord(
            given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex, run_header=headers.get(RUN_HEADER, "")
        )
        start_record(record)
        loop = asyncio.get_running_loop()
        arrived_s = loop.time()
        scope["state"] = {**scope.get("state", {}), "request_id": record.request_id, "arrived_s": arrived_s}
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if status is not None:
                raise
            internal = InternalError(f"{type(error).__name__} in {scope['method']} {scope['path']}")
            internal.__cause__ = error
            await error_response(internal, record.request_id)(scope, receive, send_with_id)
        finally:
            self._end(scope, record, _CLIENT_CLOSED_REQUEST if status is None else status, loop.time() - arrived_s)

    def _end(self, scope: Scope, record: RequestRecord, status: int, elapsed_s: float) -> None:
        route = _template(scope)
        self._metrics.finished(record, route=route, method=scope["method"], status=status, elapsed_s=elapsed_s)
        _log(scope["method"], route, record, status, elapsed_s)


def _template(scope: Scope) -> str:
    """The route's template, not the path: what a client makes up stays out of logs and labels. All of /ui is one."""
    path: str = scope["path"]
    if path == PLAYGROUND or path.startswith(f"{PLAYGROUND}/"):
        return PLAYGROUND
    template: str = getattr(scope.get("route"), "path", "")
    return template


def _log(method: str, route: str, record: RequestRecord, status: int, elapsed_s: float) -> None:
    level = logging.DEBUG if route in _FREQUENT and status < 400 else logging.INFO
    if not access_log.isEnabledFor(level):
        return
    known = {
        "error": record.error,
        "ensemble": record.ensemble,
        "version": record.version,
        "items": record.num_items,
        "tokens": record.num_tokens,
        "run": record.run,
    }
    access_log.log(
        level,
        "request",
        extra={
            "method": method,
            "route": route,
            "status": status,
            "ms": round(elapsed_s * 1000, 3),
            **{name: value for name, value in known.items() if value},
        },
    )
