"""How a server ends, and how it stands the end of its engine; with a fake scorer in the real child process."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.server_process import FAKE_ENGINE, ServerProcess, server, wait_until_gone
from tests.server.fake_engine import HANG_ID
from tests.server.tiny_bundle import make_fake_bundle

BODY = {"inputs": [{"prompt": "Hi", "response": "Hello"}]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fake_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


def test_ctrl_c_ends_the_server_with_status_0_and_no_child(bundle: Path) -> None:
    with server(FAKE_ENGINE, bundle) as running:
        family = psutil.Process(running.process.pid).children(recursive=True)
        os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does
        assert running.wait() == 0
        assert wait_until_gone(family) == []


def test_sigterm_ends_the_server_after_the_requests_under_way(bundle: Path) -> None:
    with server(FAKE_ENGINE, bundle) as running:
        engine = running.engine
        family = psutil.Process(running.process.pid).children(recursive=True)
        engine.suspend()
        with under_way(running, BODY) as first:
            os.killpg(running.process.pid, signal.SIGTERM)  # to the engine too, as service managers do
            engine.resume()
            reply = b"".join(iter(lambda: first.recv(65536), b""))
        assert reply.startswith(b"HTTP/1.1 200 ")
        assert running.wait() == 0
        assert wait_until_gone(family) == []


def test_kill_9_of_the_server_leaves_no_child_even_in_the_middle_of_a_pass(bundle: Path) -> None:
    with server(FAKE_ENGINE, bundle) as running:
        family = psutil.Process(running.process.pid).children(recursive=True)
        assert running.engine in family
        with under_way(running, {"inputs": [{"token_ids": [HANG_ID]}]}):
            running.process.kill()
            running.wait()
        assert wait_until_gone(family) == []


@contextmanager
def under_way(running: ServerProcess, body: object) -> Iterator[socket.socket]:
    """A request that the server has read and cannot answer now; gives the socket that its answer will come from."""
    with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as first:
        content = json.dumps(body).encode()
        head = f"POST /score HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n"
        first.sendall(head.encode() + content)
        # A request on a later connection got its answer: the server has taken this one, and read it.
        late = httpx.post(f"{running.url}/score", json=BODY, headers={"x-quorum-timeout-ms": "1"})
        assert late.status_code == 504
        yield first


def test_without_its_engine_the_server_says_503_and_lives(bundle: Path) -> None:
    with server(FAKE_ENGINE, bundle) as running, httpx.Client(base_url=running.url) as http:
        assert http.get("/readyz").status_code == 200
        engine = running.engine
        engine.kill()
        wait_until_gone([engine])
        reply = http.post("/score", json=BODY)
        assert reply.status_code == 503
        assert reply.json()["error"]["code"] == "not_ready"
        assert http.get("/readyz").status_code == 503
        assert http.get("/healthz").status_code == 200
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0
