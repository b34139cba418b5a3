"""Puts the playground into the application, at /ui, its bodies bounded as everybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quorum_client.errors import MissingExtra, RequestTooLarge
from quorum_server.errors import error_response

if TYPE_CHECKING:
    from quorum_server.limits import Limits
    from quorum_server.metrics import Metrics
    from quorum_server.runtime import Runtime

PATH = "/ui"


def add_playground(app: FastAPI, runtime: Runtime, limits: Limits, metrics: Metrics) -> None:
    """Mount it. It asks the core itself, beside HTTP; `KeyGuard` is before it as before all routes.

    Raises:
        MissingExtra: Gradio is not installed.
    """
    try:
        import gradio

        from quorum_server.playground.actions import Actions
        from quorum_server.playground.page import make_page
    except ImportError as error:
        raise MissingExtra("the playground needs Gradio: pip install 'quorum-rm[ui]'") from error
    gradio.mount_gradio_app(
        app,
        make_page(Actions(runtime, limits, metrics.by_version)),
        path=PATH,
        footer_links=[],
        show_error=False,
        max_file_size=limits.max_body_bytes,
        ssr_mode=False,
        enable_monitoring=False,
    )
    mounted = next(route for route in app.routes if getattr(route, "path", None) == PATH)
    mounted.app = BoundedBody(mounted.app, limits.max_body_bytes)  # type: ignore[attr-defined]


class BoundedBody:
    """Keeps bodies within bounds that the mounted application does not have: 413, or the end where no length was given.

    Args:
        app: any ASGI application.
        max_bytes: of a body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_bytes:
            error = RequestTooLarge(f"a request's body may have {self._max_bytes} bytes")
            await error_response(error, scope["state"]["request_id"])(scope, receive, send)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            return message if seen <= self._max_bytes else {"type": "http.disconnect"}

        await self._app(scope, bounded, send)
