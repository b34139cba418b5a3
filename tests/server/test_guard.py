"""Every route without a key, with each key, with a wrong one and with basic auth."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Mount

from quorum_client import AsyncClient
from quorum_server.app import create_app
from quorum_server.settings import Settings
from tests.server.conftest import Service, serving
from tests.server.fake_engine import FakeEngine
from tests.server.test_bad_input import assert_error
from tests.server.test_keys import ADMIN_KEY, LISTED, SCORE_KEY, basic

OPEN = {("GET", "/healthz"), ("GET", "/readyz")}
PAIR = {"prompt": "Hi", "response": "Hello"}


@pytest.fixture
async def guarded(fake_bundle: Path) -> AsyncIterator[Service]:
    async with serving(fake_bundle, FakeEngine(), api_keys=LISTED) as running:
        yield running


def routes() -> Iterator[tuple[str, str]]:
    """Every method of every path that the application has, its documentation too."""
    for route in create_app(Settings(), FakeEngine).routes:
        if isinstance(route, Mount):
            yield "GET", f"{route.path}/swagger-ui.css"
            continue
        path = route.path.replace("{name}", "tiny").replace("{member}", "m00")  # type: ignore[attr-defined]
        for method in sorted(route.methods):  # type: ignore[attr-defined]
            yield method, path


ROUTES = sorted(
    {*routes(), ("PUT", "/v1/ensembles/tiny"), ("DELETE", "/nowhere"), ("POST", "/nowhere"), ("PUT", "/score")}
)


def test_the_routes_are_all_there() -> None:
    assert {("POST", "/score"), ("GET", "/v1/models"), ("GET", "/openapi.json"), ("GET", "/docs"), *OPEN} <= set(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_route_and_the_keys(guarded: Service, method: str, path: str) -> None:
    is_admins = method not in ("GET", "HEAD", "POST")

    async def ask(authorization: str | None) -> httpx.Response:
        headers = {} if authorization is None else {"authorization": authorization}
        return await guarded.http.request(method, path, headers=headers)

    for authorization in (None, "", "Bearer " + "w" * 32, basic("w" * 32), f"Bearer {SCORE_KEY}x"):
        reply = await ask(authorization)
        if (method, path) in OPEN:
            assert reply.status_code == 200
            continue
        assert reply.status_code == 401
        basic_challenge, bearer = reply.headers.get_list("www-authenticate")
        assert basic_challenge.startswith("Basic realm=")
        assert bearer == "Bearer"
        if method != "HEAD":
            assert_error(reply, "unauthorized")
    for key in (SCORE_KEY, ADMIN_KEY):
        for authorization in (f"Bearer {key}", basic(key)):
            reply = await ask(authorization)
            if is_admins and key == SCORE_KEY:
                assert reply.status_code == 403
                assert_error(reply, "forbidden")
            else:
                assert reply.status_code not in (401, 403)


async def test_without_keys_everybody_may(service: Service) -> None:
    for headers in ({}, {"authorization": "Bearer whatever"}, {"authorization": "Basic %%%"}):
        reply = await service.http.post("/score", json={"inputs": [PAIR]}, headers=headers)
        assert reply.status_code == 200


@pytest.mark.parametrize(
    ("url", "api_key"),
    [("http://quorum", SCORE_KEY), (f"http://x:{SCORE_KEY}@quorum", None), (f"http://:{SCORE_KEY}@quorum", None)],
)
async def test_the_client_brings_its_key(guarded: Service, url: str, api_key: str | None) -> None:
    async with AsyncClient(url, api_key=api_key, http_client=guarded.http) as client:
        assert (await client.score([PAIR])).results[0].error is None


async def test_nothing_of_the_body_is_read_before_the_key(guarded: Service) -> None:
    read = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b" "

    reply = await guarded.http.post("/score", content=chunks())
    assert (reply.status_code, read) == (401, 0)
    assert guarded.engine.passes == []


@pytest.mark.parametrize("path", ["/v1/ensembles/tiny", "/v1/ensembles/tiny/members/m00"])
async def test_a_source_outside_the_roots_is_refused(fake_bundle: Path, path: str) -> None:
    async with serving(fake_bundle, FakeEngine(), bundle_roots=(fake_bundle / "elsewhere",)) as service:
        reply = await service.http.put(path, json={"source": str(fake_bundle)})
        assert_error(reply, "source_not_allowed")
        assert reply.status_code == 422


async def test_a_websocket_is_closed(service: Service) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message)

    transport = service.http._transport
    assert isinstance(transport, httpx.ASGITransport)
    scope = {"type": "websocket", "path": "/healthz", "headers": [], "query_string": b""}
    await transport.app(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_keys_are_in_no_log_and_no_answer(guarded: Service, caplog: pytest.LogCaptureFixture) -> None:
    wrong = "wrong-but-secret-all-the-same"
    with caplog.at_level(logging.DEBUG):
        for key in (SCORE_KEY, ADMIN_KEY, wrong):
            for authorization in (f"Bearer {key}", basic(key)):
                for path in ("/score", "/nowhere"):
                    reply = await guarded.http.post(path, json={"inputs": []}, headers={"authorization": authorization})
                    assert key not in reply.text
    assert len([record for record in caplog.records if record.name == "quorum_server.access"]) == 12
    logged = caplog.text + json.dumps([str(record.__dict__) for record in caplog.records])
    for key in (SCORE_KEY, ADMIN_KEY, wrong):
        assert key not in logged
        assert basic(key) not in logged


async def test_the_openapi_document_says_where_keys_go(guarded: Service, service: Service) -> None:
    headers = {"authorization": basic(SCORE_KEY)}  # as a browser sends it
    document = (await guarded.http.get("/openapi.json", headers=headers)).json()
    assert document["security"] == [{"bearer": []}, {"basic": []}]
    assert set(document["components"]["securitySchemes"]) == {"bearer", "basic"}
    opened = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if operation.get("security") == []
    }
    assert opened == OPEN
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert ({"401", "403"} <= set(operation["responses"])) == ((method.upper(), path) not in OPEN)
    assert "security" not in (await service.http.get("/openapi.json")).json()


def test_every_route_is_an_api_route_or_documentation() -> None:
    """Else `routes` above might miss one."""
    others = {route.path for route in create_app(Settings(), FakeEngine).routes if not isinstance(route, APIRoute)}  # type: ignore[attr-defined]
    assert others == {"/openapi.json", "/static-offline-docs"}
