"""Upload to a hub: the real client against a stand-in that speaks the hub's HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quorum_client.errors import InvalidRequest
from quorum_model.bundle.manifest import parse_manifest
from quorum_model.bundle.read import Bundle
from quorum_trainer.runs.publish import PublishFailed, check_repository, push_bundle


class Hub(BaseHTTPRequestHandler):
    """Takes repositories and commits of small files; `refuse` answers 403 to everything."""

    commits: list[dict[str, bytes]] = []  # noqa: RUF012
    created: list[dict[str, Any]] = []  # noqa: RUF012
    refuse = False

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if Hub.refuse:
            self._answer(403, {"error": "no"})
        else:
            self._answer(200, {"id": "org/name", "siblings": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if Hub.refuse:
            self._answer(403, {"error": "no"})
        elif self.path.endswith("/repos/create"):
            Hub.created.append(json.loads(body))
            self._answer(200, {"url": f"http://{self.headers['Host']}/org/name"})
        elif self.path.endswith("/validate-yaml"):
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        else:
            import base64

            lines = [json.loads(line) for line in body.decode().splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            Hub.commits.append(files)
            self._answer(
                200,
                {
                    "commitUrl": f"http://{self.headers['Host']}/org/name/commit/abc",
                    "commitOid": "abc",
                    "success": True,
                },
            )

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    import huggingface_hub.constants as constants
    import huggingface_hub.hf_api as hf_api

    for module in (constants, hf_api):
        if hasattr(module, "ENDPOINT"):
            monkeypatch.setattr(module, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    Hub.commits, Hub.created, Hub.refuse = [], [], False
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def bundle() -> Bundle:
    """The one that ships: its files are what they are."""
    from quorum_model.bundle.read import read_bundle, resolve_bundle

    return read_bundle(resolve_bundle("default"))


def test_every_file_of_the_bundle_arrives(hub: type[Hub], bundle: Bundle) -> None:
    assert push_bundle(bundle, "org/name").endswith("/org/name/commit/abc")
    assert hub.created[0]["name"] == "name"
    assert hub.created[0]["visibility"] == "private"
    (files,) = hub.commits
    manifest = parse_manifest(files["manifest.json"])
    assert manifest.name == bundle.manifest.name
    assert set(files) == {*bundle.manifest.files, "manifest.json"}
    for name, sha256 in manifest.files.items():
        assert hashlib.sha256(files[name]).hexdigest() == sha256


def test_a_refusal_is_said_and_the_bundle_stays(hub: type[Hub], bundle: Bundle) -> None:
    hub.refuse = True
    with pytest.raises(PublishFailed, match="403"):
        push_bundle(bundle, "org/name")
    assert Path(bundle.path, "manifest.json").is_file()


@pytest.mark.parametrize("name", ["name", "org/name/more", "../x/y", "org name/x", ""])
def test_what_is_no_repository_is_refused_before_training(name: str) -> None:
    with pytest.raises(InvalidRequest, match="org/name"):
        check_repository(name)
