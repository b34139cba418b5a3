"""The two servers of the experiment, in processes of their own on free ports, ended with what they started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

_READY_S = 600.0


@contextlib.contextmanager
def generator(policy: Path, python: Path, log: Path) -> Iterator[str]:
    """VLLM with the policy as `base` and room for adapters; its base URL."""
    port = _free_port()
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy), "--served-model-name", "base",
        "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "512", "--max-num-seqs", "128", "--enable-lora",
        "--max-loras", "4", "--max-lora-rank", "16", "--dtype", "float32", "--enforce-eager",
        "--no-enable-chunked-prefill",
    ]  # fmt: skip
    environ = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with _process(command, environ, log, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}/v1"


@contextlib.contextmanager
def scorer(bundles: Sequence[Path], log: Path) -> Iterator[str]:
    """A Quorum server of all these ensembles; its URL."""
    port = _free_port()
    given = [part for bundle in bundles for part in ("--bundle", str(bundle))]
    command = [sys.executable, "-m", "quorum_client.cli", "serve", "--port", str(port), "--dtype", "bfloat16", *given]
    with _process(command, {}, log, f"http://127.0.0.1:{port}/readyz"):
        yield f"http://127.0.0.1:{port}"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def _process(command: list[str], environ: dict[str, str], log: Path, ready: str) -> Iterator[None]:
    with log.open("ab") as file:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, env={**os.environ, **environ}, stdout=file, stderr=file, start_new_session=True
        )
        try:
            deadline_s = time.monotonic() + _READY_S
            while not _is_ready(ready):
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise SystemExit(f"{command[0]} does not come up: see {log}")
                time.sleep(1)
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers, of its own session


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
