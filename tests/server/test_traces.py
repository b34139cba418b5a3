"""Traces over OTLP, read by a collector of our own: which spans, whose children, and what is not in them."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quorum_client.errors import MissingExtra
from quorum_server.app import create_app
from quorum_server.settings import Settings
from tests.server.conftest import serving
from tests.server.fake_engine import FakeEngine

pytest.importorskip("opentelemetry.instrumentation.fastapi", reason="the extra `traces` is not installed")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

BODY = {"inputs": [{"prompt": "Hi", "response": "Secret words"}]}


class Collector(BaseHTTPRequestHandler):
    """Keeps the bodies that it is sent."""

    def do_POST(self) -> None:
        bodies: list[bytes] = self.server.bodies  # type: ignore[attr-defined]
        bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def collector() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.bodies = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url_of(collector: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{collector.server_port}/v1/traces"


def read(collector: ThreadingHTTPServer) -> tuple[dict[str, Any], list[Any]]:
    """The service's attributes, and all spans."""
    service: dict[str, Any] = {}
    spans = []
    for body in collector.bodies:  # type: ignore[attr-defined]
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service |= {item.key: item.value.string_value for item in resource.resource.attributes}
            spans += [span for scope in resource.scope_spans for span in scope.spans]
    return service, spans


def attributes_of(span: Any) -> dict[str, Any]:
    return {item.key: item.value.string_value or item.value.int_value for item in span.attributes}


async def test_a_request_is_a_span_with_its_phases_inside(
    fake_bundle: Path, collector: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"x-request-id": "of-mine", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    async with serving(fake_bundle, FakeEngine(), otlp_endpoint=url_of(collector)) as service:
        reply = await service.http.post("/score", json=BODY, headers=headers)
        assert reply.status_code == 200
        await service.http.get("/healthz")
        await service.http.get("/metrics")
    about, spans = read(collector)
    assert about["service.name"] == "quorum"
    by_name = {span.name: span for span in spans}
    assert set(by_name) == {"POST /score", "tokenize", "compute", "finish"}  # no probe, no scrape
    request = by_name["POST /score"]
    assert request.trace_id.hex() == trace
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert attributes_of(request)["quorum.request_id"] == "of-mine"
    for phase in ("tokenize", "compute", "finish"):
        assert by_name[phase].parent_span_id == request.span_id, phase
    answer = reply.json()
    assert attributes_of(by_name["tokenize"])["quorum.version"] == answer["ensemble"]["version"]
    assert attributes_of(by_name["compute"])["quorum.tokens"] == answer["results"][0]["num_tokens"]
    assert attributes_of(by_name["compute"])["quorum.sequences"] == 1
    assert by_name["tokenize"].end_time_unix_nano <= by_name["compute"].start_time_unix_nano
    assert not any(b"Secret" in body for body in collector.bodies)  # type: ignore[attr-defined]


async def test_requests_at_once_keep_their_own_phases(fake_bundle: Path, collector: ThreadingHTTPServer) -> None:
    async with serving(fake_bundle, FakeEngine(), otlp_endpoint=url_of(collector)) as service:
        await asyncio.gather(*(service.http.post("/score", json=BODY) for _ in range(8)))
    _, spans = read(collector)
    requests = {span.span_id for span in spans if span.name == "POST /score"}
    assert len(requests) == 8
    for phase in ("tokenize", "compute", "finish"):
        assert {span.parent_span_id for span in spans if span.name == phase} == requests


async def test_a_collector_that_is_away_holds_nobody_up(fake_bundle: Path) -> None:
    async with serving(fake_bundle, FakeEngine(), otlp_endpoint="http://127.0.0.1:9/v1/traces") as service:
        assert (await service.http.post("/score", json=BODY)).status_code == 200


async def test_no_endpoint_loads_nothing(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.setitem(sys.modules, name, None)
    async with serving(fake_bundle, FakeEngine()) as service:
        assert (await service.http.post("/score", json=BODY)).status_code == 200
    with pytest.raises(MissingExtra, match=r"quorum-rm\[traces\]"):
        create_app(Settings(otlp_endpoint="http://127.0.0.1:4318/v1/traces"))
