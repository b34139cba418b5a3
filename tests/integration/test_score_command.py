"""`quorum score` against a real server and a real bundle: one file, two ways, the same scores and errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.server_process import REAL_ENGINE, environment, server
from tests.server.tiny_bundle import make_bert_bundle

RECORDS = [
    {"id": 0, "prompt": "What is 2+2?", "response": "4"},
    {"id": 1, "prompt": "What is 2+2?", "response": "It is four."},
    {"id": 2, "text": "Five!"},
    {"id": 3, "prompt": "What is 2+2?", "response": " "},  # blank, and alone in the last batch of three
]
SCORE = "import sys; from quorum_client.cli import main; sys.argv[0] = 'quorum'; main()"

# Other batch companions, so other summation order; the scores are of order 1. fp32 has 2^-24 = 6e-8 relative.
TOLERANCE = 1e-4


def scored(tmp_path: Path, *args: str) -> list[dict[str, Any]]:
    path, out = tmp_path / "in.jsonl", tmp_path / f"out{args[0]}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    command = [sys.executable, "-c", SCORE, "score", *args, "--in", str(path), "--out", str(out), "--batch-size", "3"]
    ended = subprocess.run(command, env=registered(tmp_path), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{name: value for name, value in line.items() if name != "quorum"} for line in lines] == RECORDS
    return [line["quorum"] for line in lines]


def registered(folder: Path) -> dict[str, str]:
    """The environment of a process in which the command's entry points are registered, as after an installation."""
    info = folder / "site" / "quorum_rm_here-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quorum-rm-here\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[quorum.commands]\nscore = quorum_client.commands.score:score\n"
        "[quorum.local]\nbundle = quorum_model.local:LocalScorer\n"
    )
    inherited = environment()
    return inherited | {"PYTHONPATH": os.pathsep.join([inherited["PYTHONPATH"], str(info.parent)])}


def test_server_and_bundle_give_the_same_scores_and_errors(tmp_path: Path) -> None:
    bundle = make_bert_bundle(tmp_path / "tiny").path
    with server(REAL_ENGINE, bundle) as running:
        served = scored(tmp_path, "--url", running.url)
    local = scored(tmp_path, "--bundle", str(bundle))
    assert [one["error"] for one in served] == [one["error"] for one in local]
    assert [one["error"] and one["error"]["code"] for one in served] == [None, None, None, "empty_text"]
    for there, here in zip(served[:3], local[:3], strict=True):
        assert there["ensemble"] == here["ensemble"]
        assert there["score"] == pytest.approx(here["score"], abs=TOLERANCE)
        assert there["members"] == pytest.approx(here["members"], abs=TOLERANCE)
    assert len({round(one["score"], 3) for one in served[:3]}) == 3  # three texts, three scores: not one for all
