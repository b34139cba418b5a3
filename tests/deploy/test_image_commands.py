"""The Dockerfile's own commands without a container engine: its installation in an empty environment, its server under
its environment, its health check.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from quorum_model.benchmark.random_ensemble import draw_ensemble
from tests.deploy.test_containers import ROOT, environment_of_image
from tests.trainer.conftest import save_backbone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
KEY = "k" * 32


def copied(folder: Path) -> Path:
    """What the build's context holds: what .dockerignore lets through."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source = ROOT / line[1:]
            target = folder / line[1:]
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
    return folder


def installation(prefix: Path) -> list[str]:
    """The RUN lines of the first stage, for another prefix and with its arguments at their defaults."""
    stage = (ROOT / "Dockerfile").read_text().split("\nFROM ")[1].replace("\\\n", " ")
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", stage, re.MULTILINE))
    lines = re.findall(r"^RUN (.*)$", stage, re.MULTILINE)
    assert len(lines) == 2
    head = "".join(f"{name}={shlex.quote(value)}; " for name, value in arguments.items())
    return [
        head + line.replace("/opt/quorum", str(prefix)).replace("python -m venv", f"{sys.executable} -m venv")
        for line in lines
    ]


def test_the_image_installs_serves_and_is_healthy(tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    copied(context)
    prefix = tmp_path / "quorum"
    for line in installation(prefix):
        subprocess.run(["bash", "-euc", line], cwd=context, check=True, stdout=subprocess.DEVNULL)

    bundles = tmp_path / "bundles"
    bundles.mkdir()
    backbone = save_backbone("llama", tmp_path / "backbone")
    draw_ensemble(backbone, kind="lora", members=3, rank=4, layers="all", max_length=64).write(bundles / "one")
    (tmp_path / "keys").write_text(f"score:{KEY}\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environ = environment_of_image() | {
        "PATH": f"{prefix}/bin:/usr/bin:/bin", "QUORUM_PORT": str(port), "QUORUM_HOST": "127.0.0.1",
        "QUORUM_WATCH": str(bundles), "QUORUM_BUNDLE_ROOTS": f"{bundles}:{backbone}",
        "QUORUM_API_KEYS_FILE": str(tmp_path / "keys"), "HF_HOME": str(tmp_path / "hub"), "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    text = (ROOT / "Dockerfile").read_text()
    command = json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0])
    command += json.loads(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[0])
    (check,) = re.findall(r"^    CMD (\[.*\])$", text, re.MULTILINE)
    probe = json.loads(check.replace(":8000", f":{port}"))
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [f"{prefix}/bin/{command[0]}", *command[1:]], env=environ, cwd=tmp_path, stdout=log, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            ends = time.monotonic() + 120
            while time.monotonic() < ends and process.poll() is None:
                try:
                    if httpx.get(f"{url}/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.5)
            log.seek(0)
            assert process.poll() is None, log.read()
            assert subprocess.run([f"{prefix}/bin/{probe[0]}", *probe[1:]], check=False).returncode == 0
            headers = {"Authorization": f"Bearer {KEY}"}
            body = {"inputs": [{"prompt": "how", "response": "one two"}]}
            assert httpx.post(f"{url}/score", json=body).status_code == 401
            answer = httpx.post(f"{url}/score", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["results"][0]["members"]) == 3
        finally:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0
    assert (
        subprocess.run([f"{prefix}/bin/{probe[0]}", *probe[1:]], check=False, stderr=subprocess.DEVNULL).returncode != 0
    )
