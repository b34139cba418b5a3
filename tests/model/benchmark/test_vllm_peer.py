"""The protocol with vLLM's process, with a module of its name in an environment where Quorum is not installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from quorum_model.benchmark.vllm_peer import VllmPeer
from quorum_model.errors import PeerFailed

FAKE = """
import os, pathlib, sys
from types import SimpleNamespace

__version__ = "9.9"
assert "quorum_model" not in sys.modules
assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
print("a log line on stdout")

class PoolingParams:
    def __init__(self, use_activation):
        self.use_activation = use_activation

class LLM:
    def __init__(self, model, runner, dtype, max_model_len, enable_prefix_caching):
        assert (runner, dtype, max_model_len, enable_prefix_caching) == (
            "pooling", "float32", 40, False)
        self.model = model
        if model == "broken":
            raise RuntimeError("no such model")
        pathlib.Path(os.environ["FAKE_PID"]).write_text(str(os.getpid()))

    def classify(self, prompts, pooling_params, use_tqdm):
        assert pooling_params.use_activation is False
        if self.model == "dies":
            os._exit(3)
        return [SimpleNamespace(outputs=SimpleNamespace(probs=[sum(p["prompt_token_ids"]) / 4])) for p in prompts]
"""


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that finds the fake vLLM and nothing else beside its own packages."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "vllm.py").write_text(FAKE)
    monkeypatch.setenv("FAKE_PID", str(tmp_path / "pid"))
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "site"} exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return script


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_scores_as_often_as_asked_and_ends(python: Path, tmp_path: Path) -> None:
    with VllmPeer(python, Path("model"), [[1, 2], [3, 4, 5]], dtype="float32", max_length=40) as peer:
        assert peer.version == "9.9"
        for _ in range(2):
            np.testing.assert_array_equal(peer.score(), [[0.75, 3.0]])
        pid = int((tmp_path / "pid").read_text())
        assert is_alive(pid)
    assert not is_alive(pid)


def test_what_fails_says_its_last_words(python: Path) -> None:
    with pytest.raises(PeerFailed, match="vLLM died: RuntimeError: no such model"):
        VllmPeer(python, Path("broken"), [[1]], dtype="float32", max_length=40)
    with (
        VllmPeer(python, Path("dies"), [[1]], dtype="float32", max_length=40) as peer,
        pytest.raises(PeerFailed, match="vLLM died"),
    ):
        peer.score()


def test_an_interpreter_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match="cannot be started"):
        VllmPeer(tmp_path / "absent", Path("model"), [[1]], dtype="float32", max_length=40)
