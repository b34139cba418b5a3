"""Every alert, made to fire in a real Prometheus by what it is for, with all its minutes turned into seconds.

`promtool test rules` holds the alerts at their true pace on made-up series; here the series are a real server's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from tests.deploy.live.prometheus_process import FOLDER, PROMETHEUS, Prometheus, prometheus, quicker
from tests.deploy.live.script import MAX_QUEUED_TOKENS, WORDS
from tests.integration.server_process import REAL_ENGINE, ServerProcess, server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)"),
    pytest.mark.timeout(900),
]
LONG = " ".join(WORDS * 12)


def firing(api: Prometheus) -> list[dict[str, str]]:
    """Labels of the alerts that fire."""
    return [one["labels"] for one in api.get("alerts")["alerts"] if one["state"] == "firing"]


def wait_firing(api: Prometheus, name: str, seconds: float = 90, **labels: str) -> None:
    ends = time.monotonic() + seconds
    wanted = {"alertname": name, **labels}.items()
    while time.monotonic() < ends:
        if any(wanted <= one.items() for one in firing(api)):
            return
        time.sleep(0.5)
    raise AssertionError(f"{name} does not fire; {api.get('rules')}")


@contextmanager
def repeated(act: Callable[[], object], every_s: float) -> Iterator[None]:
    """Do it again and again while the inside runs; its errors are raised at the end."""
    ending, errors = threading.Event(), []

    def run() -> None:
        while not ending.is_set():
            try:
                act()
            except Exception as error:
                errors.append(error)
                return
            ending.wait(every_s)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
    assert errors == []


def score(url: str, texts: Sequence[str], run: str, prompt: str = "Write.") -> list[dict[str, float]]:
    inputs = [{"prompt": prompt, "response": text} for text in texts]
    reply = httpx.post(f"{url}/score", json={"inputs": inputs}, headers={"X-Quorum-Run": run}, timeout=60)
    assert reply.status_code == 200, reply.text
    return list(reply.json()["results"])


def two_kinds(url: str) -> tuple[list[str], list[str]]:
    """Texts of low score and std, and of a higher score and a std of at least 1.5 times that."""
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS, size)) for size in (2, 4, 8, 16, 32) for _ in range(40)]
    texts += [f"{'zq#' * 9} {text}" for text in texts[:40]]
    results = score(url, texts, "pool")
    means, stds = (np.array([result[name] for result in results]) for name in ("mean", "std"))
    low = [index for index in np.argsort(stds)[:60] if means[index] < np.median(means)][:8]
    high = [index for index in np.argsort(-stds)[:80] if means[index] > means[low].mean() + 0.1][:8]
    assert len(low) == len(high) == 8
    assert stds[high].mean() > 1.5 * stds[low].mean()
    return [texts[index] for index in low], [texts[index] for index in high]


def test_rules_keep_their_shape_when_they_are_made_quicker() -> None:
    text = (FOLDER / "rules.yml").read_text()
    slow, fast = yaml.safe_load(text)["groups"], yaml.safe_load(quicker(text))["groups"]
    for before, after in zip(slow, fast, strict=True):
        for old, new in zip(before["rules"], after["rules"], strict=True):
            assert old.get("record") == new.get("record")
            assert old.get("alert") == new.get("alert")
            assert old["expr"] != new["expr"] or "[" not in old["expr"]


def test_every_alert_fires_at_what_it_is_for(tmp_path: Path) -> None:
    with server(REAL_ENGINE, "default", max_queued_tokens=MAX_QUEUED_TOKENS) as running:
        calm, wild = two_kinds(running.url)
        with prometheus(running.url.removeprefix("http://"), tmp_path) as api:
            with repeated(lambda: score(running.url, calm, "ppo"), 0.1):
                time.sleep(75)  # an hour and a quarter
                assert firing(api) == []
            with repeated(lambda: score(running.url, wild, "ppo"), 0.1):
                wait_firing(api, "QuorumOverOptimization", run="ppo")
            swap(running.url)
            wait_firing(api, "QuorumSwapFailed", result="invalid_bundle")
            out_of_range(api, running.url)
            with repeated(lambda: crowd(running.url), 0.0):
                wait_firing(api, "QuorumOverloaded")
            for _ in range(2):
                kill_engine(running)
            wait_firing(api, "QuorumEngineRestarts", reason="died")
            running.process.terminate()
            running.wait()
            wait_firing(api, "QuorumDown")
            rules = [rule for group in api.get("rules")["groups"] for rule in group["rules"]]
            assert {rule["health"] for rule in rules} == {"ok"}


def swap(url: str) -> None:
    """Of an ensemble that is loaded, from a folder that is not there."""
    assert httpx.put(f"{url}/v1/ensembles/default", json={"source": "/no/such/bundle"}).status_code == 422


def out_of_range(api: Prometheus, url: str) -> None:
    outer = httpx.get(f"{url}/v1/ensembles/default").json()["std_quantiles"]["0.99"]
    random = np.random.default_rng(1)
    prompt, texts = "Write of tea rain.", [" ".join(random.choice(WORDS, 12)) for _ in range(100)]
    odd = [text for text, one in zip(texts, score(url, texts, "pool", prompt), strict=True) if one["std"] > outer]
    assert odd, "no text of the pool has a std beyond the bundle's 99th percentile"
    with repeated(lambda: score(url, odd[:4], "odd", prompt), 0.1):
        wait_firing(api, "QuorumOutOfRange", run="odd")


def crowd(url: str) -> None:
    """Several requests at once that each want most of the queue."""
    inputs = [{"prompt": "Write.", "response": f"{LONG} {index}"} for index in range(24)]
    statuses = []

    def ask() -> None:
        statuses.append(httpx.post(f"{url}/score", json={"inputs": inputs}, timeout=60).status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 429}


def kill_engine(running: ServerProcess) -> None:
    running.engine.kill()
    time.sleep(1)
    while httpx.get(f"{running.url}/readyz").status_code != 200:
        time.sleep(0.2)
