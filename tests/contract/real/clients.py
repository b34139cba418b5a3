"""The environment of the real clients, and how a script of this folder runs in it.

make test-contract  -->  .cache/contract/venv  --run_client-->  the script's last line of output, as JSON
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".cache" / "contract" / "venv" / "bin" / "python"
_TIMEOUT_S = 280

needs_clients = pytest.mark.skipif(
    not PYTHON.with_name(".installed").exists(), reason="the real clients are not installed: make test-contract does it"
)


def run_client(script: str, arguments: dict[str, Any], **variables: str) -> Any:
    """What the script says about itself in its last line.

    Args:
        script: a file of this folder; gets its arguments as JSON.
        arguments: of the script.
        variables: of its environment.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QUORUM_", "PYTHON"))}
    done = subprocess.run(
        [str(PYTHON), str(Path(__file__).with_name(script)), json.dumps(arguments)],
        env=kept | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"} | variables,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
