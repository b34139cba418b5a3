"""The application: the parts wired together.

    Settings, engine  --create_app-->  FastAPI

Knows nothing of processes' arguments, printing or signals; see `quorum_server.command`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from quorum_server.engine.process import EngineProcess
from quorum_server.errors import add_error_handlers
from quorum_server.limits import Limits
from quorum_server.middleware import RequestContext
from quorum_server.routes import compare, ensembles, health, openrlhf, rank, score, sglang, tei, vllm
from quorum_server.runtime import Engine, Runtime
from quorum_server.settings import Settings


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """The service as an ASGI application; its lifespan starts and ends the engine.

    Args:
        settings: see `Settings`.
        engine: the engine to use; one in a child process by default.
    """
    engine = engine or EngineProcess(num_threads=settings.engine_threads, log_level=settings.log_level)
    app = FastAPI(
        title="Quorum",
        summary="Reward-model ensembles as a service",
        version=_distribution_version(),
        lifespan=_lifespan,
    )
    app.state.runtime = Runtime(settings, engine)
    app.state.settings = settings
    app.state.limits = Limits(settings.max_body_bytes, settings.max_items)
    app.add_middleware(RequestContext)
    add_error_handlers(app)
    for module in (score, rank, compare, ensembles, health, openrlhf, vllm, sglang, tei):
        app.include_router(module.router)
    for router in (vllm.listing, sglang.listing, tei.information):
        app.include_router(router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    runtime: Runtime = app.state.runtime
    await runtime.start()
    try:
        yield
    finally:
        await runtime.stop()


def _distribution_version() -> str:
    try:
        return version("quorum-rm")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"
