"""A process of a benchmark, started in a group of its own: ended with what it started."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

_STOP_SECONDS = 20.0


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process and its group: asked first, then by force."""
    for stop in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, stop)
            process.wait(_STOP_SECONDS)
            break
        except ProcessLookupError:
            process.wait(_STOP_SECONDS)
            break
        except subprocess.TimeoutExpired:
            continue
