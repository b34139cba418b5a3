"""A real server: `quorum serve` in a process of its own, on a free port, with its engine in a child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

ROOT = Path(__file__).parents[2]
_WAIT_S = 60.0

REAL_ENGINE = """
from quorum_client.allocator import keep_freed_memory
keep_freed_memory()
import typer
from quorum_server.command import serve
typer.run(serve)
"""
"""The command as a user runs it, its allocator's settings too."""

FAKE_ENGINE = """
import sys
from functools import partial
from quorum_server.command import run
from quorum_server.engine.process import EngineProcess
from quorum_server.logs import configure_logging
from quorum_server.settings import Settings
from tests.server.fake_engine import FAKE_LOADER
configure_logging("info")
sys.exit(run(Settings(bundle=sys.argv[2], port=int(sys.argv[4])), partial(EngineProcess, loader=FAKE_LOADER)))
"""
"""The same, with a scorer that needs no model."""


@dataclass
class ServerProcess:
    """A running server. welcome: what it printed when it was ready. errors: where its standard error goes."""

    process: subprocess.Popen[str]
    welcome: str
    errors: IO[str]

    @property
    def curl(self) -> str:
        return self.welcome.splitlines()[-1]

    @property
    def url(self) -> str:
        (address,) = [word for word in self.curl.split() if word.startswith("http")]
        return address.removesuffix("/score")

    @property
    def log(self) -> str:
        """What it has written to standard error so far."""
        self.errors.seek(0)
        return self.errors.read()

    @property
    def engines(self) -> list[psutil.Process]:
        """The engines' processes (another child is Python's own resource tracker)."""
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    @property
    def engine(self) -> psutil.Process:
        """The one engine's process."""
        (engine,) = self.engines
        return engine

    def wait(self) -> int:
        return self.process.wait(_WAIT_S)


def environment() -> dict[str, str]:
    """Of a process that can import the project and the tests, and has no setting of the server."""
    roots = [str(ROOT / name) for name in ("clients", "server", "trainer", ".")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QUORUM_")}
    return kept | {"PYTHONPATH": os.pathsep.join(roots), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def popen(
    script: str,
    bundle: Path | str,
    port: int = 0,
    *,
    stderr: int | IO[str] = subprocess.PIPE,
    environ: Mapping[str, str] | None = None,
    **settings: object,
) -> subprocess.Popen[str]:
    variables = {f"QUORUM_{name.upper()}": str(value) for name, value in ({"bundle_roots": "/"} | settings).items()}
    return subprocess.Popen(
        [sys.executable, "-c", script, "--bundle", str(bundle), "--port", str(port)],
        env=environment() | dict(environ or {}) | variables,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,  # so that a signal to its group does not reach the tests
        text=True,
    )


@contextmanager
def server(
    script: str, bundle: Path | str, port: int = 0, environ: Mapping[str, str] | None = None, **settings: object
) -> Iterator[ServerProcess]:
    """Start a server and wait until it is ready; leaves no process behind. settings: as in `Settings`."""
    with tempfile.TemporaryFile("w+") as errors:  # a pipe that nobody reads would hold the server up when it is full
        process = popen(script, bundle, port, stderr=errors, environ=environ, **settings)
        assert process.stdout is not None
        lines: list[str] = []
        try:
            for line in process.stdout:
                lines.append(line)
                if line.startswith("curl "):
                    break
            else:
                status = process.wait()
                errors.seek(0)
                raise AssertionError(f"the server ended with {status}: {errors.read()}")
            yield ServerProcess(process, "".join(lines).strip(), errors)
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Stop a server, by force where it does not obey, with its children."""
    family = []
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for child in family:
        if child.is_running():
            child.kill()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def wait_until_gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Wait for processes to end; returns those that did not."""
    _, alive = psutil.wait_procs(processes, timeout=_WAIT_S)
    return alive
