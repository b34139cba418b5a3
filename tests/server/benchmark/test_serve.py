"""`quorum bench serve`: its arithmetic by hand, its parts alone, and all of it on a tiny backbone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from fastapi.testclient import TestClient

from quorum_client.types import ScoreItem
from quorum_model.benchmark.random_ensemble import draw_ensemble
from quorum_model.benchmark.turns import Turns
from quorum_model.benchmark.workload import plain_encoder
from quorum_model.bundle.read import read_bundle
from quorum_model.errors import PeerFailed
from quorum_model.loading import load_member_scorer
from quorum_server.benchmark.blocking_server import make_app
from quorum_server.benchmark.clients import post_all
from quorum_server.benchmark.processes import ServerProcess
from quorum_server.benchmark.serve import serve_figures
from tests.server.benchmark.run_bench import run_bench

TEXTS = ["Hi", "What is it?", "no " * 20, "Go away"]
MAX_LENGTH = 64


def test_figures_by_hand() -> None:
    turns = Turns(
        {
            "offline": [2.0, 2.0, 4.0],
            "quorum_at_1": [8.0, 8.0, 8.0],
            "quorum_at_64": [2.5, 4.0, 5.0],
            "blocking_same_dtype": [10.0, 4.0, 15.0],
        }
    )
    latencies = {"bare_forward": [0.1, 0.2, 0.3], "quorum_at_1": [0.3, 0.1, 0.5]}
    counts = {"offline": 8, "quorum_at_1": 4, "quorum_at_64": 8, "blocking_same_dtype": 2}
    figures = serve_figures(turns, latencies, counts)
    assert figures["fraction_of_offline"] == pytest.approx(0.8)  # 0.8, 0.5, 0.8
    assert figures["ratio_blocking_same_dtype"] == pytest.approx(12.0)  # 4, 1, 3 for a quarter of the texts
    assert figures["ratio_blocking_float32"] is None
    assert figures["ratio_p50_over_bare_forward"] == pytest.approx(1.5)
    assert figures["requests_per_second"]["quorum_at_64"] == pytest.approx(2.0)
    assert figures["requests_per_second"]["quorum_at_1"] == pytest.approx(0.5)
    assert figures["latency_s"]["bare_forward"]["p50"] == pytest.approx(0.2)


class _Echo(BaseHTTPRequestHandler):
    """Answers what it was sent, and counts how many are inside at a time."""

    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    inside = most_inside = 0
    meeting: threading.Barrier | None = None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        with self.lock:
            _Echo.inside += 1
            _Echo.most_inside = max(_Echo.most_inside, _Echo.inside)
        if self.meeting is not None:
            self.meeting.wait(10)
        with self.lock:
            _Echo.inside -= 1
        self.send_response(500 if b"bad" in body else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def echo() -> Iterator[str]:
    _Echo.inside = _Echo.most_inside = 0
    _Echo.meeting = None
    with ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_clients_keep_order_and_number(echo: str) -> None:
    _Echo.meeting = threading.Barrier(3)  # nobody gets on before three are there
    answers = post_all(echo, [{"number": number} for number in range(12)], 3)
    assert [body["number"] for body in answers.bodies] == list(range(12))
    assert _Echo.most_inside == 3
    assert len(answers.latencies_s) == 12
    assert all(latency > 0 for latency in answers.latencies_s)


def test_a_refused_request_is_not_measured(echo: str) -> None:
    with pytest.raises(ExceptionGroup) as raised:
        post_all(echo, [{"text": "good"}, {"text": "bad"}], 1)
    assert raised.group_contains(httpx.HTTPStatusError)


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(PeerFailed, match="no such bundle"):
        ServerProcess("import sys; print('no such bundle', file=sys.stderr); sys.exit(1)", [])


def test_a_server_is_ended_with_its_children() -> None:
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid, 'http://127.0.0.1:81', flush=True); time.sleep(60)"
    )
    with ServerProcess(code, []) as running:
        assert running.url == "http://127.0.0.1:81"
        (child,) = psutil.Process(running.pid).children()
    assert not psutil.pid_exists(running.pid)
    child.wait(10)


def test_the_peer_gives_the_ensembles_scores(backbone: Path, tmp_path: Path) -> None:
    ensemble = draw_ensemble(backbone, kind="lora", members=3, rank=2, layers="all", max_length=MAX_LENGTH)
    bundle = ensemble.write(tmp_path / "bundle")
    adapters = [str(folder) for folder in ensemble.write_adapters(tmp_path / "adapters")]
    options = {"backbone": str(backbone), "adapters": adapters, "dtype": "float32", "device": "cpu"}
    with TestClient(make_app(options | {"max_length": MAX_LENGTH})) as peer:
        rewards = [peer.post("/get_reward", json={"query": [text]}).json()["rewards"] for text in TEXTS]
    encoder = plain_encoder(backbone, is_causal=False, max_length=MAX_LENGTH)
    ids = [encoder.encode(ScoreItem(text=text)).ids for text in TEXTS]
    expected = load_member_scorer(read_bundle(bundle.path), dtype="float32").score(ids).raw
    # fp32, padding and other kernels; scores are of order 1.
    np.testing.assert_allclose(np.array(rewards)[:, :, 0].T, expected, atol=1e-4)


@pytest.mark.slow
def test_all_of_it_on_a_tiny_backbone(backbone: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Is {n}?", "chosen": "Yes, it is.", "rejected": "Go away. " * (1 + n % 4)} for n in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["serve", "--backbone", str(backbone), "--data", str(data), "--members", "2", "--dtype", "float32"]
    command += [
        "--sequences",
        "24",
        "--slow-sequences",
        "8",
        "--max-length",
        str(MAX_LENGTH),
        "--rounds",
        "2",
        "--concurrency",
        "3",
    ]
    result = run_bench(*command)
    assert set(result["seconds"]) == {
        "offline", "bare_forward", "quorum_at_1", "quorum_at_3", "quorum_at_64", "blocking_same_dtype",
    }  # fmt: skip
    assert all(len(own) == 2 for own in result["seconds"].values())
    assert result["ratio_blocking_float32"] is None
    assert max(result["largest_difference"].values()) < 1e-3
    assert result["fraction_of_offline"] > 0
