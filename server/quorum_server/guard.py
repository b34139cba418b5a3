"""Who may come in: every request's key is checked before its path is looked up or its body is read.

    request  --right_needed, ApiKeys.right_of-->  routes, or 401, or 403

Plain ASGI. Knows nothing of routes: what none of them opens is closed.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from quorum_client.errors import Forbidden, QuorumError, Unauthorized
from quorum_server.errors import error_response
from quorum_server.events import Observer
from quorum_server.keys import ApiKeys, right_needed


class KeyGuard:
    """Lets requests through that bring a key with the right they need; all of them where there are no keys."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, observer: Observer) -> None:
        self._app = app
        self._keys = keys
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "websocket":  # no route speaks it, and none shall be open by mistake
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope) if scope["type"] == "http" and self._keys else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await error_response(refusal, scope["state"]["request_id"])(scope, receive, send)

    def _refusal(self, scope: Scope) -> QuorumError | None:
        needed = right_needed(scope["method"], scope["path"])
        if needed is None:
            return None
        right = self._keys.right_of(Headers(scope=scope).get("authorization", ""))
        if right is None:
            self._observer.rejected("unauthorized")
            return Unauthorized("this needs an API key: as a bearer token, or as the password of basic auth")
        if needed == "admin" and right != "admin":
            self._observer.rejected("forbidden")
            return Forbidden("this needs an admin key: the given one may only score")
        return None
