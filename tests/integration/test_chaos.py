"""Good, malformed, huge, slow and disconnecting clients at once, on a real server: the good ones are answered right."""

from __future__ import annotations

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.server_process import FAKE_ENGINE, server
from tests.server.fake_engine import NAN_ID, OUT_OF_MEMORY_ID, RAISE_ID, fake_raw
from tests.server.tiny_bundle import make_fake_bundle

Act = Callable[[httpx.Client, random.Random], None]


def members_of(ids: list[int]) -> list[float]:
    raw = fake_raw([ids], 3)[:, 0]
    return [(float(raw[k]) - k) / (k + 1) for k in range(3)]


def check(results: list[dict[str, object]], inputs: list[list[int]]) -> None:
    for result, ids in zip(results, inputs, strict=True):
        if NAN_ID in ids:
            assert result["error"]["code"] == "non_finite_score"  # type: ignore[index]
        elif RAISE_ID in ids:
            assert result["error"]["code"] == "scoring_failed"  # type: ignore[index]
        else:
            assert result["members"] == pytest.approx(members_of(ids))


def good(http: httpx.Client, dice: random.Random) -> None:
    inputs = [[dice.randrange(9, 60) for _ in range(dice.randrange(1, 80))] for _ in range(dice.randrange(1, 6))]
    if dice.random() < 0.1:
        inputs.append([NAN_ID])
    if dice.random() < 0.1:
        inputs.append([RAISE_ID, dice.randrange(9, 60)])
    if dice.random() < 0.1:
        inputs += [[OUT_OF_MEMORY_ID, number] for number in range(9, 14)]
    reply = http.post("/score", json={"inputs": [{"token_ids": ids} for ids in inputs]})
    assert reply.status_code == 200, reply.text
    check(reply.json()["results"], inputs)


def malformed(http: httpx.Client, dice: random.Random) -> None:
    body, status = dice.choice(
        [(b"{", 400), (b"\xff", 400), (b"[]", 422), (b'{"inputs": []}', 422), (b'{"inputs": [{"text": 1}]}', 422),
         (b'{"inputs": [{"text": "a"}], "ensemble": "none"}', 404)]
    )  # fmt: skip
    assert http.post("/score", content=body).status_code == status


def huge(http: httpx.Client, dice: random.Random) -> None:
    if dice.random() < 0.5:
        assert http.post("/score", json={"inputs": [{"text": "a"}] * 3000}).status_code == 413
    else:
        assert http.post("/score", content=b" " * (1 << 20)).status_code == 413


def impatient(http: httpx.Client, dice: random.Random) -> None:
    reply = http.post("/score", json={"inputs": [{"token_ids": [10]}]}, headers={"x-quorum-timeout-ms": "0"})
    assert reply.status_code == 504


def disconnecting(http: httpx.Client, dice: random.Random) -> None:
    """Goes before the head is whole, in the middle of the body, or without waiting for the answer."""
    body = json.dumps({"inputs": [{"token_ids": [11] * 50}]}).encode()
    message = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection((http.base_url.host, http.base_url.port or 80)) as connection:
        connection.sendall(message[: dice.choice([20, len(message) - 10, len(message)])])


def slow(http: httpx.Client, dice: random.Random) -> None:
    """Sends its body in pieces."""

    def pieces() -> Iterator[bytes]:
        for piece in (b'{"inputs": [', b'{"token_ids": [', b"12, 13]}]}"):
            time.sleep(0.05)
            yield piece

    reply = http.post("/score", content=pieces())
    check(reply.json()["results"], [[12, 13]])


def run_chaos(folder: Path, num_requests: int) -> None:
    bundle = make_fake_bundle(folder / "tiny").path
    acts: list[Act] = [good, good, good, malformed, huge, impatient, disconnecting, slow]
    with server(FAKE_ENGINE, bundle, max_body_bytes=200_000, max_items=2000, token_budget=256) as running:
        family = [psutil.Process(running.process.pid), running.engine]
        limits = httpx.Limits(max_connections=32)
        with httpx.Client(base_url=running.url, limits=limits, timeout=60) as http, ThreadPoolExecutor(32) as threads:
            memory = []
            for chunk in range(10):

                def one(number: int) -> str:
                    dice = random.Random(number)
                    act = dice.choice(acts)
                    act(http, dice)
                    return act.__name__

                numbers = range(chunk * num_requests // 10, (chunk + 1) * num_requests // 10)
                done = Counter(threads.map(one, numbers))
                assert sum(done.values()) == num_requests // 10
                memory.append(sum(process.memory_info().rss for process in family))
            assert http.get("/readyz").status_code == 200
            check(http.post("/score", json={"inputs": [{"token_ids": [9, 10]}]}).json()["results"], [[9, 10]])
        # What the allocator took in the first half suffices for the second.
        assert max(memory[5:]) <= 1.05 * max(memory[:5])


def test_chaos(tmp_path: Path) -> None:
    run_chaos(tmp_path, 300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_chaos_of_10_000_requests(tmp_path: Path) -> None:
    run_chaos(tmp_path, 10_000)
