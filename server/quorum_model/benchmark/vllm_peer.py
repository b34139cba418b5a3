"""vLLM as a peer: one merged model in a process of vLLM's own environment, scoring the same token ids.

    a checkpoint, token ids  --VllmPeer-->  raw scores (1, B), as often as asked

vLLM serves a classifier, not an ensemble: K members cost K times what one does. Knows nothing of members.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quorum_model.benchmark.child import end_group
from quorum_model.errors import PeerFailed

_WORKER = Path(__file__).with_name("vllm_worker.py")
_START_SECONDS = 600.0
_RUN_SECONDS = 3600.0


class VllmPeer:
    """A vLLM process that scores one set of sequences; use as a context manager.

    Args:
        python: interpreter of an environment with vLLM.
        model: folder of a sequence-classification checkpoint with one label.
        sequences: what it scores, token ids.
        dtype: float32 or bfloat16.
        max_length: most tokens of a sequence.

    Raises:
        PeerFailed: it did not start; says what its last words were.
    """

    def __init__(
        self, python: Path, model: Path, sequences: Sequence[Sequence[int]], *, dtype: str, max_length: int
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="quorum-vllm-")
        ids = Path(self._folder.name) / "sequences.json"
        ids.write_text(json.dumps([list(sequence) for sequence in sequences]), encoding="utf-8")
        self._log = Path(self._folder.name) / "log"
        options = {"model": str(model), "dtype": dtype, "sequences": str(ids), "max_length": max_length}
        self._unread = b""
        with self._log.open("wb") as log:
            try:
                self._process = subprocess.Popen(  # noqa: S603 - the user names the interpreter
                    [str(python), str(_WORKER), json.dumps(options)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=_environment(),
                    bufsize=0,
                    # A group, to be ended with what it starts; not a session: Linux schedules sessions against each
                    # other, and on a busy machine a session of its own would get more of the processor than we do.
                    process_group=0,
                )
            except OSError as error:
                self._folder.cleanup()
                raise PeerFailed(f"{python} cannot be started: {error.strerror}") from error
        try:
            self.version: str = self._answer(_START_SECONDS)["version"]
        except BaseException:
            self.close()
            raise

    def score(self) -> NDArray[np.float32]:
        """Raw scores (1, B), before any sigmoid.

        Raises:
            PeerFailed: it died or took over an hour.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"score\n")
            self._process.stdin.flush()
        except OSError as error:
            raise PeerFailed(self._last_words("died")) from error
        return np.array([self._answer(_RUN_SECONDS)["scores"]], dtype=np.float32)

    def close(self) -> None:
        """End the process, and those that it started, and remove its files."""
        end_group(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._folder.cleanup()

    def __enter__(self) -> VllmPeer:
        """Itself: it runs from its construction on."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """See `close`."""
        self.close()

    def _answer(self, limit_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise PeerFailed(self._last_words(f"gave no answer within {limit_s:.0f} s"))
            chunk = os.read(self._process.stdout.fileno(), 1 << 20)
            if not chunk:
                raise PeerFailed(self._last_words("died"))
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self, what: str) -> str:
        lines = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"vLLM {what}: {lines[-1].strip()[:300]}" if lines else f"vLLM {what}"


def _environment() -> dict[str, str]:
    """As many threads as everyone has, nothing from the network, and no Python path of ours."""
    ours = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return ours | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "OMP_WAIT_POLICY": "PASSIVE",  # its threads must not spin while the others have their turns
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
