"""The scorer on a real Ray cluster with real replicas: routing, a killed replica, swaps and scaling, under load.

Clients here never try again: what they are told is what the cluster answers.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from quorum_client.types import ScoreRequest
from quorum_model.local import LocalScorer
from tests.integration.server_process import environment
from tests.server.tiny_bundle import make_bert_bundle

pytest.importorskip("ray.serve", reason="Ray is not installed (extra ray)")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[3]
ITEMS = [{"prompt": f"Hi {number}", "response": text} for number in range(12) for text in ("Hello", "Go away")]
# fp32, other batch companions; the scores are of order 1.
TOLERANCE = 1e-4


@dataclass
class Cluster:
    """url: of Ray's proxy. folder: what the replicas share."""

    url: str
    folder: Path
    process: subprocess.Popen[str]

    def replicas(self) -> list[psutil.Process]:
        """Of the scorer."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in family if _title(one).startswith("ray::ServeReplica:quorum:scorer")]

    def metrics(self) -> list[str]:
        """The page of each replica that answers."""
        pages = []
        for path in (self.folder / "targets").glob("*.json"):
            (target,) = json.loads(path.read_text())[0]["targets"]
            try:
                pages.append(httpx.get(f"http://{target}/metrics", timeout=10).text)
            except httpx.TransportError:
                continue  # it was killed
        return pages


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextmanager
def cluster(folder: Path, bundle: Path, **options: Any) -> Iterator[Cluster]:
    (folder / "targets").mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = {
        "bundle": [str(bundle)], "state": str(folder / "state.json"), "state_interval_s": 0.5, "bundle_roots": ["/"],
        "allow_anonymous": True,
    } | options.pop("settings", {})  # fmt: skip
    chosen = {"settings": settings, "targets": str(folder / "targets"), "num_cpus": 0.5} | options
    environ = environment() | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environ["PYTHONPATH"] += os.pathsep + str(ROOT / "deploy/ray")
    command = [sys.executable, str(ROOT / "tests/deploy/ray/cluster.py"), str(port), json.dumps(chosen)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=log, text=True)
        family: list[psutil.Process] = []
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", (folder / "log").read_text()[-4000:]
            yield Cluster(f"http://127.0.0.1:{port}", folder, process)
        finally:
            if process.poll() is None:
                family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                for left in psutil.wait_procs(family, timeout=20)[1]:
                    left.kill()
                process.kill()
                process.communicate()


@dataclass
class Load:
    """Clients that score without pause and never try again. failures: whatever was no right answer."""

    seen: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)


@contextmanager
def under_load(url: str, oracle: dict[str, list[list[float]]], num_clients: int = 8) -> Iterator[Load]:
    """oracle: members by version and item."""
    load, ending, lock = Load(), threading.Event(), threading.Lock()

    def ask(number: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not ending.is_set():
                index = number % len(ITEMS)
                number += 1
                started = time.perf_counter()
                try:
                    reply = client.post("/score", json={"inputs": [ITEMS[index]]})
                    answer = reply.json()
                    version = answer["ensemble"]["version"]
                    error = np.abs(np.subtract(answer["results"][0]["members"], oracle[version][index])).max()
                    failure = "" if error < TOLERANCE else f"off by {error}"
                except Exception as problem:
                    version, failure = "", f"{type(problem).__name__}: {problem}"
                with lock:
                    load.latencies_s.append(time.perf_counter() - started)
                    if failure:
                        load.failures.append(failure)
                    else:
                        load.seen[version] = load.seen.get(version, 0) + 1

    threads = [threading.Thread(target=ask, args=(number * 3,)) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def wait_until(met: Callable[[], bool], seconds: float = 90) -> None:
    ends = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < ends
        time.sleep(0.2)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str, list[list[float]]]]:
    """Two bundles: folder, version, members by item."""
    folder, made = tmp_path_factory.mktemp("bundles"), []
    for seed in (10, 50):
        bundle = make_bert_bundle(folder / f"v{seed}", seed=seed)
        answer = LocalScorer.open(str(bundle.path)).score(ScoreRequest.model_validate({"inputs": ITEMS}))
        made.append((bundle.path, bundle.version, [result.members or [] for result in answer.results]))
    return made


@pytest.fixture(scope="module")
def running(
    versions: list[tuple[Path, str, list[list[float]]]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("ray"), versions[0][0], min_replicas=2, max_replicas=2) as started:
        yield started


def test_candidates_of_a_prompt_meet_at_one_replica(running: Cluster) -> None:
    """Each prompt's requests name a run of their own, which only one replica then knows."""
    for number in range(16):
        for text in ("one", "two", "three", "four"):
            item = {"prompt": f"prompt {number}", "response": text}
            headers = {"X-Quorum-Run": f"prompt-{number}"}
            assert httpx.post(f"{running.url}/score", json={"inputs": [item]}, headers=headers).status_code == 200
    pages = running.metrics()
    assert len(pages) == 2
    known = [{number for number in range(16) if f'run="prompt-{number}"' in page} for page in pages]
    assert known[0] | known[1] == set(range(16))
    assert known[0] & known[1] == set()
    assert min(map(len, known)) >= 2  # both work: 16 prompts on one of two replicas by chance: below 1 in 1,000


def test_errors_and_headers_are_the_servers_own(running: Cluster) -> None:
    reply = httpx.post(f"{running.url}/score", json={"inputs": []}, headers={"X-Request-Id": "mine"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_request")
    assert reply.headers.get_list("x-request-id") == ["mine"]
    assert reply.headers["content-type"] == "application/json"
    assert httpx.post(f"{running.url}/score", content=b" " * (9 * 2**20)).status_code == 413
    assert httpx.get(f"{running.url}/nowhere").status_code == 404
    assert "paths" in httpx.get(f"{running.url}/openapi.json").json()


def test_a_killed_replica_costs_no_request(
    running: Cluster, versions: list[tuple[Path, str, list[list[float]]]]
) -> None:
    oracle = {version: members for _, version, members in versions}
    before = running.replicas()
    assert len(before) == 2
    engines = before[0].children(recursive=True)
    with under_load(running.url, oracle) as load:
        time.sleep(3)
        before[0].suspend()  # so that there are requests in it when it dies
        time.sleep(1)
        before[0].kill()
        time.sleep(3)
        wait_until(lambda: len({one.pid for one in running.replicas()} - {before[1].pid}) == 1)
        wait_until(lambda: len(running.metrics()) == 2)
        time.sleep(2)
    assert load.failures == []
    assert sum(load.seen.values()) > 100
    assert psutil.wait_procs(engines, timeout=30)[1] == []  # no engine outlives its replica
    print(f"{sum(load.seen.values())} requests, 0 failed, longest {max(load.latencies_s):.2f} s")


def test_a_swap_reaches_every_replica_and_each_answer_is_of_one_version(
    running: Cluster, versions: list[tuple[Path, str, list[list[float]]]]
) -> None:
    oracle = {version: members for _, version, members in versions}
    path, version, _ = versions[1]
    with under_load(running.url, oracle) as load:
        time.sleep(1)
        put = httpx.put(f"{running.url}/v1/ensembles/tiny", json={"source": str(path)}, timeout=60)
        assert put.status_code == 200, put.text
        wait_until(lambda: all(f'version="{version}"' in page for page in running.metrics()))
        time.sleep(1)
    assert load.failures == []
    assert set(load.seen) == {one[1] for one in versions}
    with under_load(running.url, oracle) as after:
        time.sleep(2)
    assert set(after.seen) == {version}
    assert after.failures == []


def test_replicas_follow_the_queue(versions: list[tuple[Path, str, list[list[float]]]], tmp_path: Path) -> None:
    """One replica at rest; another one while more is queued than one may hold; one again afterwards."""
    options = {
        "min_replicas": 1, "max_replicas": 2, "tokens_per_replica": 50, "upscale_delay_s": 1, "downscale_delay_s": 2,
    }  # fmt: skip
    texts = [{"prompt": "Hi", "response": "word " * 40 + str(number)} for number in range(64)]

    def ask(ending: threading.Event, url: str) -> None:
        while not ending.is_set():
            httpx.post(f"{url}/score", json={"inputs": texts}, timeout=60)

    with cluster(tmp_path, versions[0][0], **options) as started:
        assert len(started.replicas()) == 1
        ending = threading.Event()
        threads = [threading.Thread(target=ask, args=(ending, started.url)) for _ in range(6)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(started.replicas()) == 2)
        finally:
            ending.set()
            for thread in threads:
                thread.join()
        wait_until(lambda: len(started.replicas()) == 1, seconds=120)
