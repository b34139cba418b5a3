"""Settings and what a ready server prints; the running command is in tests/integration."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest
import typer
from huggingface_hub import constants as hub_constants
from huggingface_hub.utils import build_hf_headers
from typer.testing import CliRunner

from quorum_client.errors import NotReady
from quorum_client.types import ScoreRequest
from quorum_server import command
from quorum_server.settings import Settings
from tests.server.fake_engine import FakeEngine, load_with_fake
from tests.server.test_keys import LISTED, SCORE_KEY

SECRET = "correct-horse-battery-staple"
NEEDS_IPV6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that `serve` would run with."""
    settings: list[Settings] = []
    monkeypatch.setattr(command, "run", lambda given: settings.append(given) or 0)
    monkeypatch.setattr(command, "configure_logging", lambda level: None)
    return settings


def invoke(*arguments: str) -> int:
    app = typer.Typer()
    app.command()(command.serve)
    return CliRunner().invoke(app, arguments).exit_code


def test_flags_beat_the_environment_and_that_the_defaults(
    seen: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUORUM_PORT", "9001")
    monkeypatch.setenv("QUORUM_MAX_ITEMS", "7")
    monkeypatch.setenv("QUORUM_HOST", "0.0.0.0")
    assert invoke("--host", "::1", "--token-budget", "100") == 0
    (settings,) = seen
    assert (settings.host, settings.port, settings.max_items, settings.token_budget) == ("::1", 9001, 7, 100)
    assert (settings.sources, settings.device) == (["default"], "auto")


def test_the_help_shows_the_defaults_that_hold() -> None:
    for name, parameter in inspect.signature(command.serve, eval_str=True).parameters.items():
        default = Settings.model_fields[name].default
        shown = parameter.annotation.__metadata__[0].show_default
        expected = ",".join(default) if isinstance(default, list) else str(default)
        # A budget that is tried has no number to show.
        assert shown == ("tried at load" if name == "token_budget" else expected if default else True)


class BrokenEngine(FakeEngine):
    """Ends a server that has come as far as starting it."""

    async def start(self) -> None:
        raise NotReady("the engine's process cannot be started: planted")


def test_an_engine_that_cannot_start_ends_the_command_with_its_error(
    fake_bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command.run(Settings(bundle=str(fake_bundle), port=0), BrokenEngine) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == ["error: not_ready: the engine's process cannot be started: planted"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"ssl_certfile": "/nowhere.pem"}, "certificate: [Errno 2]"),
        ({"ssl_certfile": __file__}, "certificate: "),
        ({"api_keys_file": "/nowhere"}, "invalid_keys: /nowhere"),
        ({"api_keys": f"score:{SCORE_KEY} {SECRET}"}, "invalid_keys: QUORUM_API_KEYS, entry 2"),
        ({"host": "0.0.0.0"}, "--api-keys-file"),
        pytest.param({"host": "::"}, "--api-keys-file", marks=NEEDS_IPV6),
    ],
)
def test_a_server_that_would_not_be_safe_does_not_start(
    fake_bundle: Path, capfd: pytest.CaptureFixture[str], settings: dict[str, Any], reason: str
) -> None:
    assert command.run(Settings(bundle=str(fake_bundle), port=0, **settings), FakeEngine) == 1
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert SECRET not in line
    assert SCORE_KEY not in line


@pytest.mark.parametrize(
    "settings",
    [
        {"host": "0.0.0.0", "allow_anonymous": True},
        {"host": "0.0.0.0", "api_keys": LISTED},
        {"host": "localhost"},
        pytest.param({"host": "::1"}, marks=NEEDS_IPV6),
    ],
)
def test_a_server_that_is_safe_or_was_told_so_starts(
    fake_bundle: Path, capfd: pytest.CaptureFixture[str], settings: dict[str, Any]
) -> None:
    command.run(Settings(bundle=str(fake_bundle), port=0, **settings), BrokenEngine)
    assert "planted" in capfd.readouterr().err


def test_telemetry_is_off(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's process inherits the environment; here the hub's client has read it before."""
    for name in ("DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(hub_constants, "HF_HUB_DISABLE_TELEMETRY", False)
    assert "torch" in build_hf_headers(library_name="x")["user-agent"]
    command.run(Settings(bundle=str(fake_bundle), port=0), BrokenEngine)
    assert "torch" not in build_hf_headers(library_name="x")["user-agent"]
    assert [os.environ[name] for name in ("DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY")] == ["1", "1"]
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_roots_in_the_environment_are_separated_as_in_a_path(
    seen: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUORUM_BUNDLE_ROOTS", "/a:/b c:")
    assert invoke() == 0
    assert invoke("--bundle-root", "/d", "--bundle-root", "/e") == 0
    assert [settings.bundle_roots for settings in seen] == [(Path("/a"), Path("/b c")), (Path("/d"), Path("/e"))]


def test_no_key_shows_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORUM_API_KEYS", LISTED)
    settings = Settings()
    assert settings.api_keys is not None
    assert settings.api_keys.get_secret_value() == LISTED
    assert SCORE_KEY not in f"{settings!r} {settings} {settings.model_dump()}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "70000"],
        ["--token-budget", "0"],
        ["--log-level", "loud"],
        ["--devices", "cpu,"],
        ["--devices", "cpu", "--device", "cpu"],
        ["--state", "/nowhere/state"],
        ["--watch", "/nowhere"],
        ["--ssl-keyfile", "/only/the/key.pem"],
    ],
)
def test_a_setting_that_cannot_be_is_a_usage_error(seen: list[Settings], arguments: list[str]) -> None:
    assert invoke(*arguments) == 2
    assert seen == []


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "http://127.0.0.1:81"), ("0.0.0.0", "http://127.0.0.1:81"), ("::", "http://[::1]:81")],
)
async def test_the_welcome_holds_an_address_and_a_command_that_parses(
    fake_bundle: Path, host: str, address: str
) -> None:
    ensemble = await load_with_fake(fake_bundle)
    text = command.welcome([ensemble], host, 81)
    assert f"at {address}\n" in text
    words = shlex.split(text.splitlines()[-1])
    assert words[:2] == ["curl", "-s"]
    assert words[2] == f"{address}/score"
    ScoreRequest.model_validate(json.loads(words[4]))
    several = command.welcome([await load_with_fake(fake_bundle, "one"), ensemble], host, 81)
    assert ScoreRequest.model_validate(json.loads(shlex.split(several.splitlines()[-1])[4])).ensemble == "one"
    assert "curl" not in command.welcome([], host, 81)
    assert f"\nPlayground: {address}/ui\n" in command.welcome([ensemble], host, 81, has_playground=True)
    assert "/ui" not in text


def test_several_bundles_are_flags_or_commas(
    seen: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert invoke("--bundle", "a", "--bundle", "b", "--watch", str(tmp_path)) == 0
    monkeypatch.setenv("QUORUM_BUNDLE", "c,d")
    assert invoke() == 0
    monkeypatch.delenv("QUORUM_BUNDLE")
    assert invoke("--watch", str(tmp_path)) == 0
    assert [settings.sources for settings in seen] == [["a", "b"], ["c", "d"], []]
    assert invoke("--devices", "cpu,cpu") == 0
    assert seen[-1].device_list == ["cpu", "cpu"]


def test_small_writes_are_sent_at_once() -> None:
    """Else the head and the body of every response would lie 40 ms apart (Nagle's algorithm, delayed ACK)."""
    with command._listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
