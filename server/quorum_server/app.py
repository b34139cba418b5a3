"""The application: the parts wired together.

    Settings, engine  --create_app-->  FastAPI

Knows nothing of processes' arguments, printing or signals; see `quorum_server.command`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI

from quorum_server.engine.process import EngineProcess
from quorum_server.engine.supervised import Engine
from quorum_server.errors import add_error_handlers
from quorum_server.events import Observer
from quorum_server.limits import Limits
from quorum_server.middleware import RequestContext
from quorum_server.routes import compare, ensembles, health, openrlhf, rank, score, sglang, tei, vllm
from quorum_server.runtime import Runtime
from quorum_server.settings import Settings


def create_app(
    settings: Settings, make_engine: Callable[[], Engine] | None = None, observer: Observer | None = None
) -> FastAPI:
    """The service as an ASGI application; its lifespan starts and ends the engines.

    Args:
        settings: see `Settings`.
        make_engine: gives a new engine, not started; by default one in a child process.
        observer: is told of what happens.
    """
    make_engine = make_engine or partial(
        EngineProcess, num_threads=settings.engine_threads, log_level=settings.log_level
    )
    app = FastAPI(
        title="Quorum",
        summary="Reward-model ensembles as a service",
        version=_distribution_version(),
        lifespan=_lifespan,
    )
    app.state.runtime = Runtime(settings, make_engine, observer)
    app.state.settings = settings
    app.state.limits = Limits(settings.max_body_bytes, settings.max_items)
    app.add_middleware(RequestContext)
    add_error_handlers(app)
    for module in (score, rank, compare, ensembles, health, openrlhf, vllm, sglang, tei):
        app.include_router(module.router)
    for router in (ensembles.editing, vllm.listing, sglang.listing, tei.information):
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
