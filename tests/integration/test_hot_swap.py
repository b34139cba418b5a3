"""Versions swapped under load, in a real server with the real engine: no failure, and each answer is its version's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest

from quorum_client.client import Client
from quorum_client.types import ScoreRequest
from quorum_model.local import LocalScorer
from quorum_server.benchmark.swap import growth_of
from tests.integration.server_process import REAL_ENGINE, ServerProcess, server
from tests.server.tiny_bundle import make_bert_bundle

ITEMS = [{"prompt": "Hi", "response": text} for text in ("Hello", "Go away", "What?", "No. " * 9)]

# fp32, other batch companions; the scores are of order 1.
TOLERANCE = 1e-4


@dataclass
class Version:
    """A bundle, and what it gives. members: by item."""

    path: Path
    version: str
    members: list[list[float]]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Version]:
    folder = tmp_path_factory.mktemp("bundles")
    made = []
    for seed in (10, 50):
        bundle = make_bert_bundle(folder / f"v{seed}", seed=seed)
        answer = LocalScorer.open(str(bundle.path)).score(ScoreRequest.model_validate({"inputs": ITEMS}))
        made.append(Version(bundle.path, bundle.version, [result.members or [] for result in answer.results]))
    assert np.abs(np.subtract(made[0].members, made[1].members)).min(axis=1).max() > 10 * TOLERANCE
    return made


@dataclass
class Load:
    """Clients that score without pause. seen: answers by version. latencies_s: of all answers."""

    seen: dict[str, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)


@contextmanager
def under_load(running: ServerProcess, versions: list[Version], num_clients: int) -> Iterator[Load]:
    """Every answer is checked; a failed or a wrong one is raised at the end. No client retries."""
    load = Load()
    oracle = {one.version: one.members for one in versions}
    lock = threading.Lock()

    def score(number: int) -> None:
        with Client(running.url, max_retries=0) as client:
            while not load.ending.is_set():
                started_s = time.perf_counter()
                item = number % len(ITEMS)
                answer = client.score([ITEMS[item]])
                elapsed_s = time.perf_counter() - started_s
                expected = oracle[answer.ensemble.version][item]
                assert answer.results[0].members == pytest.approx(expected, abs=TOLERANCE)
                with lock:
                    load.seen[answer.ensemble.version] = load.seen.get(answer.ensemble.version, 0) + 1
                    load.latencies_s.append(elapsed_s)

    with ThreadPoolExecutor(num_clients) as threads:
        calls = [threads.submit(score, number) for number in range(num_clients)]
        try:
            yield load
        finally:
            load.ending.set()
            for call in calls:
                call.result()


def swap(http: httpx.Client, version: Version) -> None:
    reply = http.put("/v1/ensembles/tiny", json={"source": str(version.path)}, timeout=120)
    assert reply.status_code == 200, reply.text
    assert reply.json()["version"] == version.version


def test_swaps_under_load(versions: list[Version]) -> None:
    with server(REAL_ENGINE, versions[0].path) as running, httpx.Client(base_url=running.url) as http:
        with under_load(running, versions, 8) as load:
            for number in range(1, 9):
                swap(http, versions[number % 2])
                time.sleep(0.1)
        assert set(load.seen) == {one.version for one in versions}


def anonymous_bytes(pid: int) -> int:
    """What a process has allocated, in memory or swapped out; pages of files come and go as the kernel likes."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(1024 * int(words[1]) for words in lines if words[0] in ("RssAnon:", "VmSwap:"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_200_swaps_by_64_clients_with_level_memory(versions: list[Version]) -> None:
    with server(REAL_ENGINE, versions[0].path) as running, httpx.Client(base_url=running.url) as http:
        with under_load(running, versions, 64) as still:
            time.sleep(20)
        memory: list[int] = []
        with under_load(running, versions, 64) as swapping:
            for number in range(1, 201):
                swap(http, versions[number % 2])
                memory.append(sum(anonymous_bytes(pid) for pid in (running.process.pid, running.engine.pid)))
    assert set(swapping.seen) == {one.version for one in versions}
    growth = growth_of(memory[50:])
    p99 = [float(np.quantile(load.latencies_s, 0.99)) for load in (still, swapping)]
    levels = [memory[number] >> 20 for number in (0, 50, 125, 199)]
    print(f"memory {levels} MiB, {growth:+.2%} over 150 swaps; p99 {p99[0]:.3f} s still, {p99[1]:.3f} s while swapping")
    assert growth <= 0.01
    assert p99[1] <= 3 * p99[0]
