"""What only a real process shows: TLS, where it listens without keys, what it logs and whom it talks to."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
import trustme

from quorum_client import Client
from quorum_client.errors import Unauthorized
from tests.integration.server_process import FAKE_ENGINE, REAL_ENGINE, environment, server
from tests.server.test_keys import ADMIN_KEY, LISTED, SCORE_KEY, basic
from tests.server.tiny_bundle import make_bert_bundle, make_fake_bundle

SECRET = "correct horse battery staple"
PAIR = {"prompt": "Hi", "response": "Hello"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fake_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A certificate for 127.0.0.1, its key, and that of the authority that signed it."""
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    paths = (tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    own.cert_chain_pems[0].write_to_path(paths[0])
    own.private_key_pem.write_to_path(paths[1])
    authority.cert_pem.write_to_path(paths[2])
    return paths


def test_https_with_keys_from_a_file(bundle: Path, tmp_path: Path, certificate: tuple[Path, Path, Path]) -> None:
    cert, key, authority = certificate
    keys = tmp_path / "keys"
    keys.write_text(LISTED.replace(",", "\n"))
    keys.chmod(0o600)
    with server(FAKE_ENGINE, bundle, ssl_certfile=cert, ssl_keyfile=key, api_keys_file=keys) as running:
        assert running.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(authority))
        with httpx.Client(verify=trusting) as http, Client(running.url, api_key=SCORE_KEY, http_client=http) as client:
            assert client.score([PAIR]).results[0].error is None
        with httpx.Client(verify=trusting) as http, Client(running.url, http_client=http) as client:
            assert client.is_ready()
            with pytest.raises(Unauthorized):
                client.score([PAIR])
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"{running.url}/healthz")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http{running.url.removeprefix('https')}/healthz")
        assert SCORE_KEY not in running.welcome
        if shutil.which("curl"):
            environ = os.environ | {"QUORUM_API_KEY": SCORE_KEY}
            reply = subprocess.run(running.curl, shell=True, capture_output=True, text=True, check=True, env=environ)
            assert len(json.loads(reply.stdout)["results"]) == 2
        for secret in (SCORE_KEY, ADMIN_KEY):
            assert secret not in running.log


def test_the_log_is_json_and_holds_no_text_and_no_key(bundle: Path) -> None:
    """Also of what fails: in the tokenizer's thread, in the parser, in the engine."""
    bodies = [
        {"inputs": [{"prompt": SECRET, "response": SECRET}]},
        {"inputs": [{"text": SECRET}] * 2, "mode": "lcb"},
        {"inputs": [{"text": SECRET, "prompt": SECRET}]},  # nothing behind its prompt
        {"inputs": SECRET, SECRET: SECRET},
        {"inputs": [{"token_ids": [6, 20]}, {"text": SECRET}]},  # at 6 the fake scorer raises
    ]
    with server(FAKE_ENGINE, bundle, api_keys=LISTED) as running:
        with httpx.Client(base_url=running.url, headers={"authorization": basic(SCORE_KEY)}) as http:
            for number, body in enumerate(bodies):
                http.post(f"/score?{SECRET}", json=body, headers={"x-request-id": f"id-{number}"})
            http.post("/score", content=f'{{"{SECRET}')
            http.get(f"/{SECRET}", headers={"x-request-id": SECRET})
            http.put("/v1/ensembles/tiny", json={"source": SECRET})
            http.get("/healthz")
        running.process.terminate()
        assert running.wait() == 0
        log = running.log
    assert SECRET not in log
    assert "horse" not in log
    assert SCORE_KEY not in log
    assert basic(SCORE_KEY) not in log
    records = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "logger", "process", "message"} <= set(record) for record in records)
    lines = [record for record in records if record["logger"] == "quorum_server.access"]
    assert [line["status"] for line in lines] == [200, 200, 422, 422, 200, 400, 404, 403]
    assert [line["request_id"] for line in lines[:5]] == [f"id-{number}" for number in range(5)]
    assert [line["route"] for line in lines] == ["/score"] * 6 + ["", ""]
    assert [line.get("error") for line in lines[2:]] == [
        "empty_text", "invalid_request", None, "malformed_json", "not_found", "forbidden",
    ]  # fmt: skip
    assert [line.get("items") for line in lines[:5]] == [1, 2, None, None, 2]
    assert {line.get("version") for line in lines[:2]} == {lines[4]["version"]}
    assert any(record["process"] == "quorum-engine" and "exc_info" in record for record in records)


WATCH = """
import os, sys

def watch(event, args):
    if event == "socket.connect":
        address = args[1]
        host = address[0] if isinstance(address, tuple) else "unix"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    elif event in ("socket.sendto", "socket.sendmsg"):
        host = args[1][0] if isinstance(args[1], tuple) else "unix"
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "unix", "localhost", "::1") and not host.startswith("127."):
        with open(os.environ["WATCH_FILE"], "a") as file:
            file.write(f"{os.getpid()} {event} {host}\\n")

sys.addaudithook(watch)
"""
"""Of every Python process that imports it: whom it would talk to beyond this machine."""


@pytest.mark.slow
def test_it_talks_to_nobody_outside(tmp_path: Path) -> None:
    """The real engine, server and playground, with the hub's client told nothing of being offline."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    seen = tmp_path / "seen"
    path = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    variables = {"PYTHONPATH": path, "WATCH_FILE": str(seen), "HF_HUB_OFFLINE": "0"}

    for program in ("socket.socket().connect_ex(('192.0.2.1', 9))", "socket.getaddrinfo('a.invalid', 1)"):
        program = f"import socket; s = socket.setdefaulttimeout(0.01); {program}"  # noqa: PLW2901
        subprocess.run([sys.executable, "-c", program], env=environment() | variables, capture_output=True, check=False)
    assert [line.split()[1] for line in seen.read_text().splitlines()] == ["socket.connect", "socket.getaddrinfo"]
    seen.unlink()

    pytest.importorskip("gradio", reason="Gradio is not installed (extra ui)")
    with server(REAL_ENGINE, make_bert_bundle(tmp_path / "tiny").path, environ=variables, ui="true") as running:
        with Client(running.url) as client:
            client.score([PAIR])
            client.rank("Hi", ["a", "b"])
            client.ensembles()
        httpx.get(f"{running.url}/docs")
        assert httpx.get(f"{running.url}/ui/").status_code == 200
        family = [psutil.Process(running.process.pid), running.engine]
        remote = {
            connection.raddr.ip for process in family for connection in process.net_connections() if connection.raddr
        }
        environ = running.engine.environ()
    assert remote <= {"127.0.0.1", "::1"}
    assert not seen.exists(), seen.read_text()
    assert environ["DO_NOT_TRACK"] == "1"
    assert environ["HF_HUB_DISABLE_TELEMETRY"] in ("1", "True")  # Gradio says it in its own way
    assert environ["GRADIO_ANALYTICS_ENABLED"] == "False"
