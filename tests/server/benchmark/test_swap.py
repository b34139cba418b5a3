"""`quorum bench swap`: its arithmetic by hand, and all of it on a tiny backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quorum_server.benchmark.processes import ServerProcess
from quorum_server.benchmark.swap import growth_of, swap_figures
from tests.server.benchmark.run_bench import run_bench


def test_figures_by_hand() -> None:
    memory = [50, 100, 101, 102, 103, 104, 105, 106]  # the first quarter is not looked at: 101 to 106, one a swap
    figures = swap_figures([0.1] * 99 + [0.2], [0.1, 0.2, 0.3], [1.0, 3.0, 2.0], memory)
    assert figures["swap_s"] == {"p50": 2.0, "max": 3.0}
    assert figures["latency_still_s"]["p50"] == pytest.approx(0.1)
    assert figures["latency_swapping_s"]["p50"] == pytest.approx(0.2)
    assert figures["ratio_p99"] == pytest.approx(0.298 / 0.101)
    assert figures["memory_growth"] == pytest.approx(6 / 101)
    assert figures["memory_growth_of_swaps"] == 6


def test_memory_that_the_system_does_not_tell_is_no_growth() -> None:
    assert swap_figures([0.1], [0.1], [1.0, 1.0], [0, 0])["memory_growth"] is None


def test_allocated_bytes_count_children() -> None:
    code = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'b = bytearray(100 << 20); import time; time.sleep(60)']);"
        "time.sleep(2); print('http://127.0.0.1:81', flush=True); time.sleep(60)"
    )
    with ServerProcess(code, []) as running:
        assert 100 << 20 < running.allocated_bytes() < 200 << 20


@pytest.mark.slow
def test_all_of_it_on_a_tiny_backbone(backbone: Path) -> None:
    command = ["swap", "--backbone", str(backbone), "--members", "2", "--dtype", "float32", "--swaps", "4"]
    command += ["--clients", "3", "--still-s", "2", "--max-length", "32", "--median-length", "12"]
    result = run_bench(*command)
    assert len(result["answers_by_version"]) == 2
    assert result["answers"]["swapping"] == sum(result["answers_by_version"].values())
    assert result["swap_s"]["max"] > 0
    assert result["memory_growth_of_swaps"] == 3


def test_one_step_of_the_heap_is_no_leak() -> None:
    noise = np.random.default_rng(0).normal(0, 2**16, 150)
    level = np.full(150, 1000 * 2**20) + noise
    stepped = level + np.where(np.arange(150) >= 70, 8 * 2**20, 0)
    leaking = level + np.arange(150) * 100 * 2**10  # 100 KiB a swap: 1.5 % in all
    assert abs(growth_of(stepped.astype(int).tolist())) < 0.001
    assert growth_of(leaking.astype(int).tolist()) == pytest.approx(150 * 100 / 1000 / 1024, rel=0.05)
