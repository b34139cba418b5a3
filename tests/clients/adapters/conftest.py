"""A fake server behind every client that an adapter makes: it keeps the requests, and can be told what to answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from quorum_client.async_client import AsyncClient
from quorum_client.client import Client
from tests.clients.fake_server import respond

Patch = Callable[[Any, str], None]


@dataclass
class FakeServer:
    """bodies: of the requests to /score. keys: their Authorization headers. edit: changes the results of an answer."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    edit: Callable[[list[dict[str, Any]]], None] = lambda results: None
    down: bool = False

    def respond(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("refused")
        self.bodies.append(json.loads(request.content))
        self.keys.append(request.headers.get("authorization"))
        answer = json.loads(respond(request).content)
        self.edit(answer["results"])
        return httpx.Response(200, json=answer)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """Every new client of any adapter speaks to it."""
    server = FakeServer()
    transport = httpx.MockTransport(server.respond)
    for cls, http in ((AsyncClient, httpx.AsyncClient), (Client, httpx.Client)):
        init = cls.__init__

        def patched(self: Any, *args: Any, _init: Any = init, _http: Any = http, **options: Any) -> None:
            _init(self, *args, http_client=_http(transport=transport), **options)

        monkeypatch.setattr(cls, "__init__", patched)
    return server
