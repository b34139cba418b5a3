"""A real Prometheus on a free port, with the project's configuration made quicker, and its query API."""

from __future__ import annotations

import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.deploy.live.book import Labels, Series, Vector

FOLDER = Path(__file__).parents[3] / "deploy" / "prometheus"
PROMETHEUS = shutil.which("prometheus")
SCRAPE_S = 1.0
_DROPPED = {"__name__", "job", "instance"}


def quicker(rules: str) -> str:
    """The rules with every minute made a second, and every hour a minute."""
    return re.sub(r"\b(\d+)([mh])\b", lambda found: found[1] + {"m": "s", "h": "m"}[found[2]], rules)


class Prometheus:
    """Its API."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)

    def close(self) -> None:
        self._client.close()

    def get(self, route: str, **parameters: Any) -> Any:
        reply = self._client.get(f"/api/v1/{route}", params=parameters)
        assert reply.status_code == 200, reply.text
        return reply.json()["data"]

    def query(self, expression: str, at: float) -> Vector:
        """Instant values by labels, those of name, job and instance left out."""
        data = self.get("query", query=expression, time=at)
        assert data["resultType"] == "vector", expression
        return {_labels(one["metric"]): float(one["value"][1]) for one in data["result"]}

    def samples(self, selector: str, seconds: float, at: float) -> dict[Series, list[tuple[float, float]]]:
        """All samples of the last seconds: (time, value)."""
        data = self.get("query", query=f"{selector}[{math.ceil(seconds)}s]", time=at)
        return {
            (one["metric"]["__name__"], _labels(one["metric"])): [(t, float(value)) for t, value in one["values"]]
            for one in data["result"]
        }

    def wait_scrapes(self, count: int) -> float:
        """Wait for scrapes that begin after now. Returns the time of the last one."""
        started = time.time()
        while True:
            samples = self.samples("up", 60, time.time()).values()
            times = [at for one in samples for at, _ in one if at > started]
            if len(times) >= count:
                return max(times)
            assert time.time() < started + 60, "Prometheus does not scrape"
            time.sleep(0.2)


def _labels(metric: dict[str, str]) -> Labels:
    return frozenset((name, value) for name, value in metric.items() if name not in _DROPPED and value)


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """Start it on `deploy/prometheus` for one target; leaves no process behind."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_S:g}s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "rules.yml").write_text(quicker((FOLDER / "rules.yml").read_text()))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert PROMETHEUS is not None
    command = [
        PROMETHEUS, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        _wait(f"http://127.0.0.1:{port}/-/ready", process)
        with closing(Prometheus(f"http://127.0.0.1:{port}")) as api:
            yield api
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(150):
        assert process.poll() is None, "Prometheus ended"
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("Prometheus is not ready")
