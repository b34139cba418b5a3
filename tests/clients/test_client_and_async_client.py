"""The sync and the async client over the same cases: methods, retries, deadline, and a real loopback server."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpx
import pytest

from quorum_client import AsyncClient, Client
from quorum_client._request import READY_CALL
from quorum_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
    QuorumError,
    Unauthorized,
    UnexpectedResponse,
)
from tests.clients.fake_server import LISTED, answer, error_body, respond

Handler = Callable[[httpx.Request], httpx.Response]
ITEMS = [{"prompt": "p", "response": "four"}, {"text": "ab"}]


class Simulated:
    """One client with a handler in place of the network and a clock that only sleeping moves."""

    def __init__(self, kind: str, handler: Handler, **options: Any) -> None:
        self.requests: list[httpx.Request] = []
        self.sleeps_s: list[float] = []
        self.now_s = 50.0

        def recorded(request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            return handler(request)

        transport = httpx.MockTransport(recorded)
        self.client: Any
        if kind == "sync":
            self.client = Client("http://h", http_client=httpx.Client(transport=transport), **options)
            self.client._sleep = self._advance
        else:
            self.client = AsyncClient("http://h", http_client=httpx.AsyncClient(transport=transport), **options)
            self.client._sleep = self._advance_async
        self.client._clock = lambda: self.now_s
        self.client._jitter = lambda: 1.0

    def _advance(self, seconds: float) -> None:
        self.sleeps_s.append(seconds)
        self.now_s += seconds

    async def _advance_async(self, seconds: float) -> None:
        self._advance(seconds)

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        result = getattr(self.client, method)(*args, **options)
        return asyncio.run(result) if inspect.isawaitable(result) else result


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def failing(times: int, response: Callable[[], httpx.Response] | Exception) -> Handler:
    """Fails `times` times, then answers."""
    left = [times]

    def handler(request: httpx.Request) -> httpx.Response:
        if left[0] > 0:
            left[0] -= 1
            if isinstance(response, Exception):
                raise response
            return response()
        return respond(request)

    return handler


def not_ready() -> httpx.Response:
    return httpx.Response(503, json=error_body("not_ready", "starting", retryable=True))


def test_score(kind: str) -> None:
    simulated = Simulated(kind, respond)
    scored = simulated.call("score", ITEMS, mode="lcb", beta=0.5, center="group", ensemble="e")
    assert [result.members for result in scored.results] == [[4, 5, 6], [2, 3, 4]]
    assert (scored.mode, scored.beta, scored.center) == ("lcb", 0.5, "group")
    assert json.loads(simulated.requests[0].content)["ensemble"] == "e"


def test_rank(kind: str) -> None:
    ranked = Simulated(kind, respond).call("rank", "p", ["a", "ccc", "bb"], mode="min")
    assert (ranked.best, ranked.order, ranked.mode) == (1, [1, 2, 0], "min")


def test_compare(kind: str) -> None:
    simulated = Simulated(kind, respond)
    assert simulated.call("compare", "p", "aaa", "b").margin.mean == 2.0
    pairs = [{"prompt": "p", "a": "a", "b": "bb"}, {"prompt": "q", "a": "aa", "b": "b"}]
    assert [c.margin.mean for c in simulated.call("compare_pairs", pairs, ensemble="e").results] == [-1.0, 1.0]


def test_ensembles(kind: str) -> None:
    (listed,) = Simulated(kind, respond).call("ensembles")
    assert listed.model_dump(exclude_unset=True) == LISTED


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (lambda: httpx.Response(200, json={}), True),
        (not_ready, False),
        (lambda: httpx.Response(502, text="<html>"), False),
        (httpx.ConnectError("refused"), False),
    ],
)
def test_is_ready_asks_once(kind: str, response: Any, expected: bool) -> None:
    simulated = Simulated(kind, failing(9, response))
    assert simulated.call("is_ready") is expected
    assert len(simulated.requests) == 1


def test_is_ready_does_not_hide_a_wrong_key_or_address(kind: str) -> None:
    wrong_key = failing(9, lambda: httpx.Response(401, json=error_body("unauthorized")))
    with pytest.raises(Unauthorized):
        Simulated(kind, wrong_key).call("is_ready")
    with pytest.raises(UnexpectedResponse):
        Simulated(kind, failing(9, lambda: httpx.Response(404, text="<html>"))).call("is_ready")


@pytest.mark.parametrize(
    "response",
    [
        not_ready,
        lambda: httpx.Response(500, json=error_body("internal_error", retryable=True)),
        lambda: httpx.Response(500, text="Internal Server Error"),
        lambda: httpx.Response(502, text="<html>"),
        lambda: httpx.Response(429, json=error_body("overloaded", retryable=True)),
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("closed"),
    ],
)
def test_passing_failures_are_retried_with_backoff(kind: str, response: Any) -> None:
    simulated = Simulated(kind, failing(3, response))
    assert len(simulated.call("score", ITEMS).results) == 2
    assert simulated.sleeps_s == [0.25, 0.5, 1.0]
    assert len({request.content for request in simulated.requests}) == 1
    assert len({request.headers["x-request-id"] for request in simulated.requests}) == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "malformed_json"),
        (401, "unauthorized"),
        (403, "forbidden"),
        (404, "ensemble_not_found"),
        (413, "request_too_large"),
        (422, "invalid_request"),
        (504, "deadline_exceeded"),
    ],
)
def test_lasting_failures_are_not_retried(kind: str, status: int, code: str) -> None:
    simulated = Simulated(kind, failing(1, lambda: httpx.Response(status, json=error_body(code))))
    with pytest.raises(QuorumError) as caught:
        simulated.call("score", ITEMS)
    assert caught.value.code == code
    assert len(simulated.requests) == 1


def test_last_error_is_raised_after_max_retries(kind: str) -> None:
    simulated = Simulated(kind, failing(9, not_ready), max_retries=2)
    with pytest.raises(NotReady, match="starting"):
        simulated.call("score", ITEMS)
    assert simulated.sleeps_s == [0.25, 0.5]
    assert len(simulated.requests) == 3


def test_retry_after_is_honoured(kind: str) -> None:
    full = lambda: httpx.Response(429, json=error_body("overloaded", retryable=True), headers={"retry-after": "7"})  # noqa: E731
    simulated = Simulated(kind, failing(2, full))
    simulated.call("score", ITEMS)
    assert simulated.sleeps_s == [7.0, 7.0]


def test_deadline_covers_all_attempts_and_is_told_to_the_server(kind: str) -> None:
    simulated = Simulated(kind, failing(9, not_ready), max_retries=9, deadline_s=4.0)
    with pytest.raises(DeadlineExceeded, match="not_ready: starting") as caught:
        simulated.call("score", ITEMS)
    assert isinstance(caught.value.__cause__, NotReady)
    # 0.25 + 0.5 + 1 have passed at the last attempt; the next wait of 2 s would end at 3.75 s, the one after too late.
    assert simulated.sleeps_s == [0.25, 0.5, 1.0, 2.0]
    assert [request.headers["x-quorum-timeout-ms"] for request in simulated.requests] == [
        "4000",
        "3750",
        "3250",
        "2250",
        "250",
    ]


def test_deadline_of_one_call_goes_before_that_of_the_client(kind: str) -> None:
    simulated = Simulated(kind, respond, deadline_s=60.0)
    simulated.call("score", ITEMS, deadline_s=1.5)
    simulated.call("score", ITEMS)
    assert [request.headers["x-quorum-timeout-ms"] for request in simulated.requests] == ["1500", "60000"]


def test_retry_after_beyond_the_deadline_is_not_waited_for(kind: str) -> None:
    full = lambda: httpx.Response(429, json=error_body("overloaded", retryable=True), headers={"retry-after": "61"})  # noqa: E731
    simulated = Simulated(kind, failing(1, full))
    with pytest.raises(DeadlineExceeded) as caught:
        simulated.call("score", ITEMS)
    assert isinstance(caught.value.__cause__, Overloaded)
    assert simulated.sleeps_s == []


def test_bad_input_is_refused_before_anything_is_sent(kind: str) -> None:
    simulated = Simulated(kind, respond)
    for inputs in ([], [{"prompt": "p"}]):
        with pytest.raises(InvalidRequest):
            simulated.call("score", inputs)
    assert simulated.requests == []


def test_borrowed_http_client_stays_open_and_adds_its_headers() -> None:
    http = httpx.Client(transport=httpx.MockTransport(respond), headers={"x-team": "a"})
    with Client("http://h", http_client=http) as client:
        assert client.is_ready()
    assert not http.is_closed
    assert client._endpoint.request(http, READY_CALL, request_id="r", remaining_s=1.0).headers["x-team"] == "a"


def test_both_clients_have_the_same_methods() -> None:
    def public(cls: type) -> dict[str, Any]:
        methods = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
        return {
            name.removeprefix("a"): [(p.name, p.kind, p.default) for p in inspect.signature(value).parameters.values()]
            for name, value in methods.items()
        }

    assert public(Client) == public(AsyncClient)


class Loopback(BaseHTTPRequestHandler):
    """A real server around the same rule; it records the key it was given."""

    protocol_version = "HTTP/1.1"
    keys: ClassVar[list[str | None]] = []
    drip: ClassVar[threading.Event | None] = None

    def _answer(self) -> None:
        size = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(size)) if size else None
        self.keys.append(self.headers.get("authorization"))
        payload = json.dumps(answer(self.command, self.path.removeprefix("/base"), body)).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        if self.drip is not None:
            self.wfile.flush()
            self.drip.wait(30)
            return
        self.wfile.write(payload)

    do_GET = do_POST = _answer

    def log_message(self, *args: object) -> None:
        """Silent."""


@pytest.fixture
def loopback() -> Iterator[tuple[str, type[Loopback]]]:
    handler = type("Handler", (Loopback,), {"keys": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_round_trip_over_a_real_connection(loopback: tuple[str, type[Loopback]]) -> None:
    address, handler = loopback
    with Client(f"http://x:KEY@{address}/base") as client:
        assert client.is_ready()
        assert [r.score for r in client.score(ITEMS).results] == [5.0, 3.0]
    assert handler.keys == ["Basic eDpLRVk="] * 2


async def test_async_round_trip_over_a_real_connection(loopback: tuple[str, type[Loopback]]) -> None:
    address, handler = loopback
    async with AsyncClient(f"http://{address}/base", api_key="KEY") as client:
        answers = await asyncio.gather(*(client.score([item]) for item in ITEMS))
        assert [a.results[0].score for a in answers] == [5.0, 3.0]
    assert handler.keys == ["Bearer KEY"] * 2


def test_nobody_there_is_a_failed_connection(kind: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Loopback) as server:
        port = server.server_address[1]
    client = (Client if kind == "sync" else AsyncClient)(f"http://x:KEY@127.0.0.1:{port}", max_retries=0)

    async def ask() -> None:
        try:
            result = client.score(ITEMS)
            if inspect.isawaitable(result):
                await result
        finally:
            await client.aclose() if isinstance(client, AsyncClient) else client.close()

    with pytest.raises(ConnectionFailed, match="cannot reach") as caught:
        asyncio.run(ask())
    assert "KEY" not in caught.value.message


def test_silent_server_meets_the_deadline(kind: str, loopback: tuple[str, type[Loopback]]) -> None:
    address, handler = loopback
    handler.drip = threading.Event()
    try:
        with pytest.raises(DeadlineExceeded):
            _ask_once(address) if kind == "sync" else asyncio.run(_ask_once_async(address))
    finally:
        handler.drip.set()


def _ask_once(address: str) -> None:
    with Client(f"http://{address}") as client:
        client.score(ITEMS, deadline_s=0.05)


async def _ask_once_async(address: str) -> None:
    async with AsyncClient(f"http://{address}") as client:
        await client.score(ITEMS, deadline_s=0.05)


def test_dripping_server_meets_the_deadline() -> None:
    simulated: Simulated

    def drip() -> Iterator[bytes]:
        while True:
            simulated.now_s += 1.0
            yield b" "

    simulated = Simulated("sync", lambda request: httpx.Response(200, content=drip()), deadline_s=5.0)
    with pytest.raises(DeadlineExceeded):
        simulated.call("score", ITEMS)
    assert simulated.now_s == 55.0
