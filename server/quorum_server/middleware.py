"""The outermost layer of every request: its id, its time of arrival, and the net under unexpected exceptions.

    request  --id, arrival-->  routes  --x-request-id-->  response

Plain ASGI, so that neither bodies nor disconnects are buffered on the way. Knows nothing of routes.
"""

from __future__ import annotations

import asyncio
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quorum_client.errors import InternalError
from quorum_server.errors import error_response

REQUEST_ID_HEADER = "x-request-id"
_SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestContext:
    """Gives each request `state.request_id` and `state.arrived_s` (event loop's clock) and echoes the id.

    The id is the client's where it is up to 128 printable ASCII characters, else a new one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        scope["state"] = {
            **scope.get("state", {}),
            "request_id": request_id,
            "arrived_s": asyncio.get_running_loop().time(),
        }
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if has_started:
                raise
            internal = InternalError(f"{type(error).__name__} in {scope['method']} {scope['path']}")
            internal.__cause__ = error
            await error_response(internal, request_id)(scope, receive, send_with_id)
