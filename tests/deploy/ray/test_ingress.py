"""A replica that is lost costs its client's time, not the request; and no replica is asked once that time is over."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="Ray is not installed (extra ray)")

from ray.serve.exceptions import BackPressureError
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from quorum_ray.ingress import Ingress
from quorum_ray.messages import Answer, Request


class Replicas:
    """Stands for Serve's handle: refuses `refusals` times, after `wait_s` each, and keeps what it was asked."""

    def __init__(self, refusals: int, wait_s: float = 0.0) -> None:
        self.refusals = refusals
        self.wait_s = wait_s
        self.asked: list[Request] = []
        self.handle = self

    def options(self, **_: Any) -> Replicas:
        return self

    async def remote(self, request: Request) -> Answer:
        self.asked.append(request)
        if len(self.asked) > self.refusals:
            return Answer(200, ((b"content-length", b"2"),), b"ok")
        await asyncio.sleep(self.wait_s)
        raise BackPressureError(1, 1)


def ask(replicas: Replicas, *headers: tuple[bytes, bytes]) -> Response:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/score", "query_string": b"", "headers": list(headers)}
    return asyncio.run(Ingress(replicas, 1000)(HTTPRequest(scope, receive)))  # type: ignore[arg-type]


def test_the_next_replica_is_asked_with_what_is_left_of_the_deadline() -> None:
    replicas = Replicas(refusals=2)
    assert ask(replicas, (b"x-quorum-timeout-ms", b"10000"), (b"authorization", b"Bearer k")).status_code == 200
    given = [request.timeout_ms for request in replicas.asked]
    assert given[0] == 10_000
    assert 10_000 - 50 >= given[1] > given[2] > 0  # type: ignore[operator]  # 50 ms is the first pause
    assert all((b"authorization", b"Bearer k") in request.headers for request in replicas.asked)


def test_no_replica_is_asked_when_the_deadline_has_passed() -> None:
    replicas = Replicas(refusals=9, wait_s=0.1)
    answer = ask(replicas, (b"X-Quorum-Timeout-Ms", b"120"))
    assert answer.status_code == 504
    assert len(replicas.asked) == 1


@pytest.mark.parametrize("headers", [[], [(b"x-quorum-timeout-ms", b"soon")]], ids=["none", "no number"])
def test_a_request_without_a_deadline_is_asked_again_as_it_came(headers: list[tuple[bytes, bytes]]) -> None:
    replicas = Replicas(refusals=1)
    assert ask(replicas, *headers).status_code == 200
    assert [request.headers for request in replicas.asked] == [tuple(headers)] * 2
