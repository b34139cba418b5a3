"""The application: the parts wired together.

    Settings, engine  --create_app-->  FastAPI

Knows nothing of processes' arguments, printing or signals; see `quorum_server.command`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from huggingface_hub import constants as hub_constants

from quorum_client.generation import Generator
from quorum_server.engine.process import EngineProcess
from quorum_server.engine.supervised import Engine
from quorum_server.errors import ERROR_RESPONSES, add_error_handlers
from quorum_server.events import Observer
from quorum_server.gateway.gateway import Gateway
from quorum_server.guard import KeyGuard
from quorum_server.keys import load_keys, right_needed
from quorum_server.limits import Limits
from quorum_server.metrics import Metrics
from quorum_server.middleware import RequestContext
from quorum_server.playground import add_playground
from quorum_server.routes import compare, ensembles, gateway, health, metrics, openrlhf, rank, score, sglang, tei, vllm
from quorum_server.runtime import Runtime
from quorum_server.settings import Settings
from quorum_server.traces import Traces


def create_app(settings: Settings, make_engine: Callable[[], Engine] | None = None) -> FastAPI:
    """The service as an ASGI application; its lifespan starts and ends the engines.

    Args:
        settings: see `Settings`.
        make_engine: gives a new engine, not started; by default one in a child process.

    Raises:
        InvalidKeys: the API keys cannot be used.
        InvalidRequest: the generator's address is none.
        MissingExtra: OpenAI's SDK, OpenTelemetry or Gradio is asked for and not installed.
    """
    _forbid_telemetry()
    listed = None if settings.api_keys is None else settings.api_keys.get_secret_value()
    keys = load_keys(listed, settings.api_keys_file)
    make_engine = make_engine or partial(
        EngineProcess, num_threads=settings.engine_threads, log_level=settings.log_level
    )
    app = FastAPIOffline(  # /docs and /redoc with their scripts from here: users' machines may see no other
        title="Quorum",
        summary="Reward-model ensembles as a service",
        version=_distribution_version(),
        lifespan=_lifespan,
    )
    app.state.metrics = watcher = Metrics(len(settings.device_list))
    app.state.traces = traces = Traces(settings.otlp_endpoint)
    app.state.runtime = runtime = Runtime(settings, make_engine, watcher, traces)
    watcher.watch(lambda: runtime.admission.held_tokens, runtime.registry.list, runtime.engine_pids)
    app.state.max_queued_tokens = settings.max_queued_tokens
    app.state.tokenizer_threads = settings.tokenizer_threads
    app.state.limits = Limits(settings.max_body_bytes, settings.max_items)
    app.state.bundle_roots = settings.bundle_roots
    app.state.needs_key = bool(keys)
    app.state.gateway = _make_gateway(settings, runtime, watcher)
    app.add_middleware(KeyGuard, keys=keys, observer=watcher)
    traces.watch(app)
    app.add_middleware(RequestContext, metrics=watcher)  # added last, so outermost
    add_error_handlers(app)
    app.include_router(health.router)
    closed = (score, rank, compare, ensembles, metrics, openrlhf, vllm, sglang, tei)
    for router in (
        *(module.router for module in closed),
        ensembles.editing,
        vllm.listing,
        sglang.listing,
        tei.information,
        *([] if app.state.gateway is None else [gateway.router]),
    ):
        app.include_router(router, responses={status: ERROR_RESPONSES[status] for status in (401, 403)})
    if keys:
        _document_keys(app.openapi())
    if settings.ui:
        add_playground(app, runtime, app.state.limits, watcher)
    return app


def _make_gateway(settings: Settings, runtime: Runtime, observer: Observer) -> Gateway | None:
    if settings.generator_url is None:
        return None
    key = settings.generator_api_key
    generator = Generator(
        settings.generator_url,
        api_key=None if key is None else key.get_secret_value(),
        deadline_s=settings.generator_timeout_s,
        max_in_flight=settings.generator_max_in_flight,
        called="the generator",  # its address is nobody's business
    )
    return Gateway(
        generator,
        runtime.service,
        runtime.registry,
        model=settings.generator_model,
        num_candidates=settings.generator_candidates,
        max_in_flight=settings.generator_max_in_flight,
        observer=observer,
    )


def _document_keys(openapi: dict[str, Any]) -> None:
    """Say in the OpenAPI document, which FastAPI keeps once it is made, where keys go and what needs none."""
    openapi["components"]["securitySchemes"] = {name: {"type": "http", "scheme": name} for name in ("bearer", "basic")}
    openapi["security"] = [{"bearer": []}, {"basic": []}]
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            if right_needed(method.upper(), path) is None:
                operation["security"] = []


def _forbid_telemetry() -> None:
    """Switch off what libraries would tell their makers, here and in the engines' processes."""
    os.environ.update(DO_NOT_TRACK="1", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_ANALYTICS_ENABLED="False")
    hub_constants.HF_HUB_DISABLE_TELEMETRY = True  # it read the environment when it was imported


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    runtime: Runtime = app.state.runtime
    await runtime.start()
    try:
        yield
    finally:
        await runtime.stop()
        if app.state.gateway is not None:
            await app.state.gateway.aclose()
        await asyncio.to_thread(app.state.traces.close)


def _distribution_version() -> str:
    try:
        return version("quorum-rm")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"
