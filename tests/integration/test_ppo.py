"""`quorum ppo` with a real vLLM and a real Quorum server: the reward rises, and a killed run is taken up again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.integration.generator_process import generator, generator_python, kill_generator, save_policy
from tests.integration.server_process import REAL_ENGINE, server

PYTHON = generator_python()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(PYTHON is None, reason="no vLLM here: make generator-env, or set QUORUM_GENERATOR_PYTHON"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A policy in vLLM, the default ensemble behind a Quorum server, and prompts; the config of a run against them."""
    folder = tmp_path_factory.mktemp("ppo")
    policy = folder / "policy"
    save_policy(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    model.lm_head.weight.data.mul_(10)  # adapters do not reach it: with rows this small every policy is near uniform
    model.save_pretrained(policy)
    words = "what is it why not say so go on tell me how".split()
    # As many as a step has: every step has the same prompts, and rewards can be compared over steps.
    rows = [{"prompt": " ".join(words[(n + k) % len(words)] for k in range(1 + n % 4))} for n in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert PYTHON is not None
    with generator(policy, PYTHON) as url, server(REAL_ENGINE, "default") as running:
        yield {
            "folder": folder,
            "policy": policy,
            "config": {
                "name": "real",
                "policy": {"model": str(policy), "rank": 8, "alpha": 16},
                "prompts": {"path": str(folder / "prompts.jsonl"), "max_tokens": 64},
                "generator": {"url": url, "model": "base", "tolerance": 1e-3, "deadline_s": 60},
                "reward": {"url": running.url},
                "estimator": "rloo",
                "steps": 20,
                "rollout": {"prompts": 8, "samples": 8, "max_new_tokens": 12},
                "update": {"lr": 5e-3, "minibatch": 32, "epochs": 2},
                "kl": {"coefficient": 0.0, "early_stop": None},
                "trackers": [],
            },
        }


def start(world: dict[str, Any], name: str, *flags: str, **changes: Any) -> subprocess.Popen[str]:
    path = world["folder"] / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**world["config"], **changes}))
    command = [sys.executable, "-m", "quorum_client.cli", "ppo", str(path), "--out", str(world["folder"] / name)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--device", "cpu", "--json", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return dict(json.loads(out.splitlines()[-1]))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_reward_rises_and_the_adapter_is_the_one_in_vllm(world: dict[str, Any]) -> None:
    summary = finish(start(world, "rises"))
    folder = Path(summary["folder"])
    lines = lines_of(folder)
    rewards = np.array([line["reward/score"] for line in lines])
    first, last = rewards[:5], rewards[-5:]
    error = np.sqrt(first.var(ddof=1) / 5 + last.var(ddof=1) / 5)
    assert last.mean() - first.mean() > 3 * error
    assert summary["reward/score"]["difference"] == pytest.approx(last.mean() - first.mean())
    # fp32 on both sides: sums in another order, over a softmax of 300; an adapter of one step before is far off.
    assert max(line["kl/generator"] for line in lines) < 1e-4
    moved = [line["kl/step"] for line in lines]
    assert max(moved) > 1e-3
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world["policy"]), str(folder))
    assert (folder / "curves.png").stat().st_size > 10_000
    # Thrown away and run again under the same name: nothing of the first run is taken for the second one's.
    shutil.rmtree(folder)
    again = finish(start(world, "rises", steps=2, seed=7))
    assert again["steps"] == 2
    assert lines_of(folder)[0]["reward/score"] != rewards[0]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_killed_run_goes_on_and_asks_for_nothing_twice(world: dict[str, Any], overlap: bool) -> None:
    name = f"killed-{overlap}"
    rollout = {**world["config"]["rollout"], "overlap": overlap}
    process = start(world, name, steps=6, estimator="gae", rollout=rollout)
    journal = world["folder"] / f"{name}.run" / "journal"
    deadline = time.monotonic() + 300
    while not (journal / "000002.jsonl").exists() or b"reward" not in (journal / "000002.jsonl").read_bytes():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = (journal / "000002.jsonl").read_bytes()
    finish(start(world, name, "--resume", steps=6, estimator="gae", rollout=rollout))
    lines = lines_of(world["folder"] / name)
    assert [line["step"] for line in lines] == list(range(6))
    again = (journal / "000002.jsonl").read_bytes()
    whole = kept[: kept.rfind(b"\n") + 1]
    assert again.startswith(whole)
    drawn = [json.loads(line)["place"] for line in again.splitlines() if json.loads(line)["kind"] == "draws"]
    assert sorted(drawn) == list(range(8))
    assert max(line["kl/generator"] for line in lines) < 1e-4


def in_the_middle_of(world: dict[str, Any], name: str, process: subprocess.Popen[str], kind: bytes) -> None:
    """Wait until step 2 has heard of its first completions or rewards."""
    path = world["folder"] / f"{name}.run" / "journal" / "000002.jsonl"
    deadline = time.monotonic() + 300
    while not path.exists() or kind not in path.read_bytes():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_reward_server_that_is_killed_and_comes_back_costs_nothing(world: dict[str, Any]) -> None:
    port = free_port()
    with server(REAL_ENGINE, "default", port) as first:
        process = start(world, "server-killed", steps=5, reward={"url": first.url, "deadline_s": 120})
        in_the_middle_of(world, "server-killed", process, b"draws")
        for one in [*first.engines, psutil.Process(first.process.pid)]:
            one.kill()
        first.process.wait(30)
        time.sleep(2)  # so that somebody asks while nobody is there
        with server(REAL_ENGINE, "default", port):
            finish(process)
    lines = lines_of(world["folder"] / "server-killed")
    assert [line["step"] for line in lines] == list(range(5))
    assert len({version for line in lines for version in line["versions"]}) == 1


def test_a_generator_that_is_killed_and_comes_back_gets_the_adapter_again(world: dict[str, Any]) -> None:
    """It comes back with nothing but its own model; the completions after that are of the adapter as before."""
    port = free_port()
    assert PYTHON is not None
    with generator(world["policy"], PYTHON, port) as url:
        options = {**world["config"]["generator"], "url": url, "deadline_s": 400}
        process = start(world, "generator-killed", steps=5, generator=options)
        in_the_middle_of(world, "generator-killed", process, b"draws")
        kill_generator(port)
        with generator(world["policy"], PYTHON, port):
            finish(process)
    lines = lines_of(world["folder"] / "generator-killed")
    assert [line["step"] for line in lines] == list(range(5))
    assert max(line["kl/generator"] for line in lines) < 1e-4


def test_a_reward_server_that_stays_away_ends_the_run_with_a_word(world: dict[str, Any]) -> None:
    reward = {"url": "http://127.0.0.1:9", "deadline_s": 2}
    process = start(world, "away", reward=reward)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "reward: " in errors
    assert "127.0.0.1:9" in errors
