"""An application over a fake engine, spoken to without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from quorum_server.app import create_app
from quorum_server.engine.supervised import Engine
from quorum_server.runtime import Runtime
from quorum_server.settings import Settings
from tests.server.fake_engine import FakeEngine
from tests.server.tiny_bundle import make_fake_bundle


@dataclass
class Service:
    """A running application. engine: what it runs on."""

    http: httpx.AsyncClient
    engine: Any
    runtime: Runtime


@asynccontextmanager
async def serving(bundle: Path, engine: Engine, *, wait: bool = True, **changes: Any) -> AsyncIterator[Service]:
    changes = {"bundle_roots": ("/",)} | changes
    app = create_app(Settings(bundle=str(bundle), tokenizer_threads=2, **changes), lambda: engine)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://quorum") as http,
    ):
        if wait:
            await app.state.runtime.wait_loaded()
        yield Service(http, engine, app.state.runtime)


@pytest.fixture(scope="session")
def fake_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fake_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


@pytest.fixture
async def service(fake_bundle: Path) -> AsyncIterator[Service]:
    async with serving(fake_bundle, FakeEngine()) as running:
        yield running
