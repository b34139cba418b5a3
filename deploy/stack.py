"""Scorer, Prometheus and, where it is installed and a model is named, a generator: without containers, on loopback.

    python deploy/stack.py [--bundle default] [--model ./my-policy]     until Ctrl-C; `make stack`

Prints the addresses when all of it answers. Logs lie in a folder that is printed too. What is not installed is said and
left out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

DEPLOY = Path(__file__).parent
GENERATOR_PYTHON = DEPLOY.parent / ".cache/generator/venv/bin/python"
_READY_S = 300.0
_END_S = 60.0


@dataclass(frozen=True, slots=True)
class Service:
    """A process to start. ready: a URL that answers 200 once it is. shown: addresses to print, with what is there."""

    name: str
    command: Sequence[str]
    ready: str
    shown: tuple[tuple[str, str], ...]
    environment: tuple[tuple[str, str], ...] = ()


def main() -> None:
    """Start, print, wait, end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--model", type=Path, help="a local causal model for the generator")
    parser.add_argument("--port", type=int, default=8000, help="of the scorer")
    parser.add_argument("--prometheus-port", type=int, default=9090)
    parser.add_argument("--generator-port", type=int, default=8001)
    options = parser.parse_args()
    # As Ctrl-C: what was started is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="quorum-stack-"))
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        # One after another, so that what was started is ended where the next one is not.
        started = [(service, stack.enter_context(running(service, folder))) for service in services(options, folder)]
        for service, process in started:
            wait_ready(service, process, folder)
        for service, _ in started:
            for url, what in service.shown:
                print(f"{what:<24} {url}", flush=True)
        print(f"{'logs':<24} {folder}\nCtrl-C ends all of it.", flush=True)
        while all(process.poll() is None for _, process in started):
            time.sleep(0.5)
        ended = [service.name for service, process in started if process.poll() is not None]
        sys.exit(f"{', '.join(ended)} ended; its log is in {folder}")


def services(options: argparse.Namespace, folder: Path) -> Iterator[Service]:
    """What can be started here; says what cannot."""
    url, generator = f"http://127.0.0.1:{options.port}", None
    if options.model is None:
        print("no generator: name a model with --model (make stack MODEL=./my-policy)")
    elif not GENERATOR_PYTHON.exists():
        print("no generator: vLLM is not installed (make generator-env)")
    else:
        generator = f"http://127.0.0.1:{options.generator_port}"
        yield Service(
            "generator",
            [
                str(GENERATOR_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(options.model),
                "--served-model-name", "base", "--host", "127.0.0.1", "--port", str(options.generator_port),
                "--no-enable-chunked-prefill",
            ],
            f"{generator}/health",
            ((f"{generator}/v1", "generator"),),
            (("VLLM_CPU_KVCACHE_SPACE", "1"), ("VLLM_NO_USAGE_STATS", "1"), ("HF_HUB_OFFLINE", "1")),
        )  # fmt: skip
    command = [sys.executable, "-m", "quorum_client.cli", "serve", "--ui"]
    command += ["--bundle", options.bundle, "--port", str(options.port)]
    if generator is not None:
        command += ["--generator-url", f"{generator}/v1"]
    shown = [(url, "scorer"), (f"{url}/ui", "playground"), (f"{url}/docs", "routes"), (f"{url}/metrics", "metrics")]
    yield Service("scorer", command, f"{url}/readyz", tuple(shown))
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        print("no Prometheus: it is not installed (Debian: apt-get install prometheus)")
        return
    listen = f"127.0.0.1:{options.prometheus_port}"
    arguments = [f"--config.file={configure(folder, options.port)}", f"--storage.tsdb.path={folder / 'prometheus'}"]
    yield Service(
        "prometheus",
        [prometheus, *arguments, f"--web.listen-address={listen}"],
        f"http://{listen}/-/ready",
        ((f"http://{listen}", "Prometheus"), (f"http://{listen}/alerts", "alerts")),
    )


def configure(folder: Path, port: int) -> Path:
    """deploy/prometheus for a scorer on this port."""
    source = DEPLOY / "prometheus"
    config = yaml.safe_load((source / "prometheus.yml").read_text(encoding="utf-8"))
    config["rule_files"] = [str((source / name).resolve()) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    target = folder / "prometheus.yml"
    target.write_text(yaml.safe_dump(config), encoding="utf-8")
    return target


@contextlib.contextmanager
def running(service: Service, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its log; in the end told to stop, and made to where it does not."""
    with (folder / f"{service.name}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - commands of ours
            service.command, stdout=log, stderr=log, env=os.environ | dict(service.environment), start_new_session=True
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_ready(service: Service, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Until it answers.

    Raises:
        SystemExit: it ended, or does not.
    """
    ends = time.monotonic() + _READY_S
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(service.ready, timeout=5):  # noqa: S310 - http
            return
        time.sleep(0.5)
    raise SystemExit(f"{service.name} does not start; its log is {folder / service.name}.log")


if __name__ == "__main__":
    main()
