"""A server in a process of its own: started, found by the address that it prints, ended with what it started.

    arguments  --ServerProcess-->  url

Knows nothing of what it serves.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch

from quorum_model.benchmark.child import end_group
from quorum_model.errors import PeerFailed

_START_SECONDS = 300.0
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")

QUORUM = "from quorum_client.cli import main; main()"
"""The `quorum` command, as Python code."""


class ServerProcess:
    """A Python process that prints its address when it is ready; use as a context manager.

    Args:
        code: what it runs.
        arguments: its command line.

    Raises:
        PeerFailed: it ended, or printed no address in time; says what its last words were.
    """

    def __init__(self, code: str, arguments: Sequence[str]) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "OMP_WAIT_POLICY": "PASSIVE"},
            process_group=0,  # to be ended with what it starts
        )
        self.url = ""
        reading = threading.Thread(target=self._read_output, daemon=True)
        self._is_ready = threading.Event()
        reading.start()
        if not self._is_ready.wait(_START_SECONDS) or not self.url:
            words = self._last_words()
            self.close()
            raise PeerFailed(f"a server did not start: {words}")

    @property
    def pid(self) -> int:
        """Of the process itself."""
        return self._process.pid

    def allocated_bytes(self) -> int:
        """What it and its children have allocated, in memory or swapped out; 0 where the system does not say."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        try:
            pids = [str(self.pid), *children.read_text(encoding="ascii").split()]
            statuses = [Path(f"/proc/{pid}/status").read_text(encoding="utf-8") for pid in pids]
        except OSError:
            return 0
        lines = (line.split() for status in statuses for line in status.splitlines())
        return sum(1024 * int(words[1]) for words in lines if words[0] in ("RssAnon:", "VmSwap:"))

    def close(self) -> None:
        """End it and what it started."""
        end_group(self._process)
        self._log.close()

    def __enter__(self) -> ServerProcess:
        """Itself: it runs from its construction on."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """See `close`."""
        self.close()

    def _read_output(self) -> None:
        """To the end, so that the process never waits for somebody to read."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                found = _ADDRESS.search(line)
                if found is not None and not self.url:
                    self.url = found.group()
                    self._is_ready.set()
        self._is_ready.set()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return lines[-1][:300] if lines else "without a word"
