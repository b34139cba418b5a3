"""A replica: quorum_server's application, with its engines in processes of their own, fed by the ingress.

    Request --ASGI, in this process--> quorum_server.app --> Answer

Metrics of a replica lie behind a port of its own, since /metrics through the ingress would be any replica's: where a
folder for targets is named, a file there tells Prometheus (`file_sd_configs`).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import ray
from fastapi import FastAPI
from prometheus_client import start_http_server
from ray import serve

from quorum_ray.messages import Answer, Request
from quorum_ray.scaling import METRIC
from quorum_server.app import create_app
from quorum_server.logs import configure_logging
from quorum_server.runtime import Runtime
from quorum_server.settings import Settings

_OWN_HEADERS = {b"content-length", b"transfer-encoding", b"connection", b"host"}
"""Of each hop. The request's id comes from Ray's proxy, which puts it into the answer too."""


class Scorer:
    """A replica of the server.

    Args:
        settings: of `quorum_server.settings.Settings`, by name; `QUORUM_*` variables count too.
        targets: folder of files for Prometheus; None for no metrics port.
    """

    async def __init__(self, settings: dict[str, Any], targets: str | None = None) -> None:  # type: ignore[misc]
        """Ready when it returns: Ray sends no requests before."""
        configure_logging("info")
        self._stack = contextlib.AsyncExitStack()
        chosen = Settings(**settings)
        app = create_app(chosen)
        self._runtime: Runtime = app.state.runtime
        await self._stack.enter_async_context(_lifespan(app))
        await self._runtime.wait_loaded()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._http = await self._stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://scorer", timeout=None)  # noqa: S113 - has deadlines of its own
        )
        if targets is not None:
            self._stack.enter_context(_metrics_port(app, Path(targets)))

    async def handle(self, request: Request) -> Answer:
        """Answer one request."""
        headers = [one for one in request.headers if one[0] not in _OWN_HEADERS]
        reply = await self._http.request(request.method, request.target, headers=headers, content=request.body)
        dropped = {*_OWN_HEADERS, b"x-request-id"}
        kept = tuple((name.lower(), value) for name, value in reply.headers.raw if name.lower() not in dropped)
        return Answer(reply.status_code, kept, reply.content)

    async def check_health(self) -> None:
        """Ray replaces a replica whose start has failed; engines that die are the server's own to restart."""
        if not self._runtime.may_become_ready:
            raise RuntimeError("this replica cannot become ready")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `QueuedTokens` scales by."""
        return {METRIC: float(self._runtime.admission.held_tokens)}

    async def __del__(self) -> None:
        """Ray waits for requests under way before it calls this."""
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with app.router.lifespan_context(app):
        yield


@contextlib.contextmanager
def _metrics_port(app: FastAPI, folder: Path) -> Any:
    """A port with this replica's metrics, told to Prometheus; the file of one that was killed stays: it is down."""
    server, thread = start_http_server(0, registry=app.state.metrics.registry)
    replica = serve.get_replica_context().replica_id.unique_id
    address = f"{ray.util.get_node_ip_address()}:{server.server_port}"
    path = folder / f"{replica}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps([{"targets": [address], "labels": {"replica": replica}}]), encoding="utf-8")
    os.replace(part, path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        server.shutdown()
        thread.join()
