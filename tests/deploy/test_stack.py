"""`deploy/stack.py`: scorer and Prometheus up, scraped, and gone again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.integration.server_process import environment

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "deploy/stack.py"), *arguments]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_starts_what_is_there_says_what_is_not_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed (extra ui)")
    port, prometheus = free_port(), free_port()
    process = start("--port", str(port), "--prometheus-port", str(prometheus))
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line.strip())
        if line.startswith("Ctrl-C"):
            break
    addresses = {line.split(maxsplit=1)[0]: line.split()[-1] for line in printed if "http://" in line}
    assert printed[0].startswith("no generator")
    for name in ("playground", "routes", "metrics", "Prometheus"):
        assert httpx.get(addresses[name], follow_redirects=True).status_code == 200
    query = f"{addresses['Prometheus']}/api/v1/query?query=up"
    ends = time.monotonic() + 60
    while not (found := httpx.get(query).json()["data"]["result"]) and time.monotonic() < ends:
        time.sleep(0.5)
    assert [one["value"][1] for one in found] == ["1"]
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=90)
    assert process.returncode == 0
    assert psutil.wait_procs(family, timeout=30)[1] == []


def test_says_which_part_does_not_start() -> None:
    process = start("--bundle", "/no/such/bundle", "--port", str(free_port()), "--prometheus-port", str(free_port()))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "scorer does not start; its log is " in output
