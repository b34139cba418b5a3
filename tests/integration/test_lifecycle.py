"""How a server ends, and how it stands the end of its engine; with a fake scorer in the real child process."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from quorum_client.client import Client
from quorum_client.types import ScoreResponse
from tests.integration.server_process import FAKE_ENGINE, ServerProcess, server, wait_until_gone
from tests.server.fake_engine import CRASH_ID, HANG_ID, fake_raw
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


def test_sigterm_under_load_answers_all_or_says_503(bundle: Path) -> None:
    """What is under way is answered, what comes later is told to go elsewhere, and the status is 0."""
    with server(FAKE_ENGINE, bundle) as running, httpx.Client(base_url=running.url) as http:
        engine = running.engine
        engine.suspend()
        with under_way(running, BODY) as first:
            running.process.send_signal(signal.SIGTERM)
            while (ready := http.get("/readyz")).status_code == 200:
                pass
            late = http.post("/score", json=BODY)
            for reply in (ready, late):
                assert reply.status_code == 503
                assert int(reply.headers["retry-after"]) >= 1
            assert http.get("/healthz").status_code == 200
            engine.resume()
            assert b"".join(iter(lambda: first.recv(65536), b"")).startswith(b"HTTP/1.1 200 ")
        assert running.wait() == 0


def test_what_is_not_finished_in_time_is_told_503(bundle: Path) -> None:
    with server(FAKE_ENGINE, bundle, drain_s=1) as running:
        running.engine.suspend()
        with under_way(running, BODY) as first:
            running.process.send_signal(signal.SIGTERM)
            assert b"".join(iter(lambda: first.recv(65536), b"")).startswith(b"HTTP/1.1 503 ")
        assert running.wait() == 0


def test_a_second_signal_ends_at_once(bundle: Path) -> None:
    with server(FAKE_ENGINE, bundle, drain_s=600) as running, httpx.Client(base_url=running.url) as http:
        running.engine.suspend()
        with under_way(running, BODY):
            running.process.send_signal(signal.SIGTERM)
            while http.get("/readyz").status_code == 200:
                pass
            running.process.send_signal(signal.SIGTERM)
            assert running.wait() == 0


def hammer(running: ServerProcess, seconds: float, act: Callable[[], None]) -> list[ScoreResponse]:
    """Eight clients score without pause, with retries, while `act` does its worst after half of the time."""
    answers: list[ScoreResponse] = []
    end_s = time.monotonic() + seconds

    def score(number: int) -> None:
        with Client(running.url, max_retries=20) as client:
            count = 0
            while time.monotonic() < end_s:
                answer = client.score([{"token_ids": [20 + number, 30 + count % 40]}, {"token_ids": [40 + number]}])
                expected = fake_raw([[20 + number, 30 + count % 40], [40 + number]], 3)
                for index, result in enumerate(answer.results):
                    raw = [(expected[k, index] - k) / (k + 1) for k in range(3)]
                    assert result.members == pytest.approx(raw)
                answers.append(answer)
                count += 1

    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(score, number) for number in range(8)]
        time.sleep(seconds / 2)
        act()
        for call in calls:
            call.result()
    return answers


def test_a_killed_engine_costs_no_client_its_answer(bundle: Path) -> None:
    with server(FAKE_ENGINE, bundle) as running, httpx.Client(base_url=running.url) as http:
        old = running.engine
        assert len(hammer(running, 4, old.kill)) > 50
        assert http.get("/readyz").status_code == 200
        assert running.engine.pid != old.pid


def test_a_hung_engine_is_found_and_replaced_under_load(bundle: Path) -> None:
    with server(FAKE_ENGINE, bundle, pass_timeout_s=1) as running, httpx.Client(base_url=running.url) as http:
        old = running.engine
        assert len(hammer(running, 6, old.suspend)) > 50
        assert http.get("/readyz").status_code == 200
        assert running.engine.pid != old.pid
        assert wait_until_gone([old]) == []


def test_with_two_engines_one_that_dies_makes_nobody_wait(bundle: Path) -> None:
    with server(FAKE_ENGINE, bundle, devices="cpu,cpu") as running, httpx.Client(base_url=running.url) as http:
        assert len(running.engines) == 2
        old = running.engines[0]
        old.kill()
        wait_until_gone([old])
        assert http.get("/readyz").status_code == 200
        assert http.post("/score", json=BODY).status_code == 200


def test_while_its_only_engine_comes_back_the_server_says_503(bundle: Path) -> None:
    with server(FAKE_ENGINE, bundle) as running, httpx.Client(base_url=running.url) as http:
        running.engine.kill()
        while (ready := http.get("/readyz")).status_code == 200:
            pass
        assert ready.status_code == 503
        assert ready.json()["error"]["code"] == "not_ready"
        assert http.get("/healthz").status_code == 200
        while http.get("/readyz").status_code == 503:
            time.sleep(0.05)
        assert http.post("/score", json=BODY).status_code == 200


def test_an_item_that_kills_the_engine_takes_no_neighbour_along(bundle: Path) -> None:
    with server(FAKE_ENGINE, bundle) as running:
        bad = {"inputs": [{"token_ids": [CRASH_ID]}]}
        engine = running.engine
        engine.suspend()
        with under_way(running, BODY) as blocker, ThreadPoolExecutor(4) as threads:
            calls = [
                threads.submit(httpx.post, f"{running.url}/score", json=body, timeout=60)
                for body in (BODY, bad, BODY, BODY)
            ]
            time.sleep(0.5)  # all of them stand in the queue
            engine.resume()
            assert blocker.recv(12) == b"HTTP/1.1 200"
            assert [call.result().status_code for call in calls] == [200] * 4
            assert calls[1].result().json()["results"][0]["error"]["code"] == "scoring_failed"


def test_kill_9_of_the_server_loses_only_requests_in_flight_which_the_client_retries(bundle: Path) -> None:
    with server(FAKE_ENGINE, bundle) as first:
        port = int(first.url.rpartition(":")[2])
        first.engine.suspend()
        with Client(first.url, max_retries=50, deadline_s=60) as client, ThreadPoolExecutor(1) as threads:
            call = threads.submit(client.score, [{"prompt": "Hi", "response": "Hello"}])
            time.sleep(0.3)
            first.process.kill()
            first.wait()
            with server(FAKE_ENGINE, bundle, port):
                assert call.result().results[0].error is None
