"""Puts the playground into the application, at /ui."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fastapi import FastAPI

from quorum_client.errors import MissingExtra

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
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it asks another machine at import otherwise
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
