"""A benchmark as a user runs it: a process, and the JSON object that ends its output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def run_bench(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", "from quorum_client.cli import main; main()", "bench", *arguments, "--json"],
        capture_output=True, text=True, check=False, timeout=240, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
