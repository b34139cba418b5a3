"""`quorum bench swap`: what replacing a live ensemble costs those who score meanwhile.

options  --one server, clients that never pause, versions swapped under them-->  a table on stderr, one JSON line
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.console import Console

from quorum_model.benchmark.environment import describe_environment
from quorum_model.benchmark.random_backbone import find_backbone
from quorum_model.benchmark.random_ensemble import draw_ensemble
from quorum_model.benchmark.score import DEFAULT_BACKBONE, BenchDtype, choose_bench_dtype
from quorum_model.benchmark.workload import draw_sequences
from quorum_model.bundle.read import Bundle
from quorum_model.errors import PeerFailed
from quorum_model.loading import choose_device
from quorum_model.sources import vocabulary_size
from quorum_server.benchmark.processes import QUORUM, ServerProcess

console = Console(stderr=True)

_PATIENCE_S = 600.0
_TEXTS = 64
_SETTLED = 0.25
"""The first swaps fill caches that stay: memory is looked at after this share of them."""


def swap(  # noqa: PLR0913 - the options of a command are its interface
    *,
    backbone: Annotated[str, typer.Option(help="As in a training config.")] = DEFAULT_BACKBONE,
    members: Annotated[int, typer.Option(min=1, max=100)] = 5,
    rank: Annotated[int, typer.Option(min=1)] = 16,
    dtype: Annotated[
        BenchDtype, typer.Option(help="Of the engine; auto is bfloat16 where the machine multiplies it.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    swaps: Annotated[int, typer.Option(min=2)] = 50,
    clients: Annotated[int, typer.Option(min=1, help="Each scores one text after another.")] = 8,
    still_s: Annotated[float, typer.Option(min=1, help="Seconds under load without a swap, before.")] = 30.0,
    median_length: Annotated[int, typer.Option(min=1, help="Of the texts, in tokens.")] = 110,
    max_length: Annotated[int, typer.Option(min=8, help="Longer ones are cut.")] = 256,
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
) -> None:
    """Swap two versions of an ensemble back and forth under clients that score without pause."""
    target = choose_device(device)
    chosen, reason = choose_bench_dtype(dtype, target)
    with tempfile.TemporaryDirectory(prefix="quorum-bench-") as work:
        folder = find_backbone(backbone, Path(work), max_length=max_length)
        ensemble = draw_ensemble(folder, kind="lora", members=members, rank=rank, layers="all", max_length=max_length)
        turned = replace(
            ensemble,
            states=ensemble.states[::-1],
            golden=[item.model_copy(update={"scores": item.scores[::-1]}) for item in ensemble.golden],
        )
        versions = [ensemble.write(Path(work) / "one"), turned.write(Path(work) / "two")]
        vocabulary = vocabulary_size(folder)
        assert vocabulary is not None
        texts = draw_sequences(_TEXTS, vocabulary, median_length=median_length, max_length=max_length)
        options = ["serve", "--bundle", str(versions[0].path), "--port", "0", "--dtype", chosen]
        options += ["--device", str(target), "--bundle-root", work, "--log-level", "warning"]
        with ServerProcess(QUORUM, options) as server:
            still, swapping, seconds, memory = _measure(server, versions, texts, clients, still_s, swaps)
    result: dict[str, Any] = {
        "bench": "swap",
        "backbone": backbone,
        "members": members,
        "rank": rank,
        "dtype": chosen,
        "device": str(target),
        "clients": clients,
        "swaps": swaps,
        **swap_figures(still.latencies_s, swapping.latencies_s, seconds, memory),
        "answers_by_version": dict(swapping.versions),
        "reasons": {"dtype": reason} if reason else {},
        "environment": describe_environment(),
    }
    for name in ("swap_s", "latency_still_s", "latency_swapping_s", "ratio_p99", "memory_growth"):
        console.print(f"{name}: {result[name]}", highlight=False, markup=False)
    if print_json:
        typer.echo(json.dumps(result))


@dataclass
class _Load:
    """What clients saw. versions: answers by version. latencies_s: of all answers."""

    versions: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, version: str, latency_s: float) -> None:
        with self.lock:
            self.versions[version] += 1
            self.latencies_s.append(latency_s)


def _measure(
    server: ServerProcess, versions: list[Bundle], texts: list[list[int]], clients: int, still_s: float, swaps: int
) -> tuple[_Load, _Load, list[float], list[int]]:
    """Under load without swaps, then with; seconds of every swap, and allocated bytes after it."""
    loads = [_Load(), _Load()]
    is_swapping, ending = threading.Event(), threading.Event()

    def score(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=_PATIENCE_S, trust_env=False) as http:
            while not ending.is_set():
                load = loads[is_swapping.is_set()]
                started = time.perf_counter()
                reply = http.post("/score", json={"inputs": [{"token_ids": texts[number % len(texts)]}]})
                elapsed = time.perf_counter() - started
                if reply.status_code != httpx.codes.OK:
                    raise PeerFailed(f"a request failed during the benchmark: {reply.status_code} {reply.text[:200]}")
                load.add(reply.json()["ensemble"]["version"], elapsed)
                number += clients

    seconds: list[float] = []
    memory: list[int] = []
    with ThreadPoolExecutor(clients) as threads:
        calls = [threads.submit(score, number) for number in range(clients)]
        try:
            time.sleep(still_s)
            is_swapping.set()
            with httpx.Client(base_url=server.url, timeout=_PATIENCE_S, trust_env=False) as http:
                for number in range(1, swaps + 1):
                    bundle = versions[number % 2]
                    started = time.perf_counter()
                    reply = http.put("/v1/ensembles/random", json={"source": str(bundle.path)})
                    seconds.append(time.perf_counter() - started)
                    if reply.status_code != httpx.codes.OK or reply.json()["version"] != bundle.version:
                        raise PeerFailed(f"swap {number} failed: {reply.status_code} {reply.text[:200]}")
                    memory.append(server.allocated_bytes())
        finally:
            ending.set()
        for call in calls:
            call.result()
    return loads[0], loads[1], seconds, memory


def growth_of(memory: Sequence[int]) -> float:
    """How much memory grew with every swap, over all of them, as a share of what there was at first.

    By the median of the differences over a sixth of the swaps: what leaks at each swap is in all of them, and a heap
    that is made larger once (7 MiB, seen after some 100 swaps) is in few. In a straight line's slope such a
    step looked like a leak.

    Args:
        memory: bytes after each swap, two or more.
    """
    values = np.array(memory, np.float64)
    lag = max(1, len(values) // 6)
    return float(np.median(values[lag:] - values[:-lag]) / lag * len(values) / values[0])


def swap_figures(
    still_s: list[float], swapping_s: list[float], swap_s: list[float], memory: list[int]
) -> dict[str, Any]:
    """Latencies with and without swaps, time of a swap, growth of memory.

    Args:
        still_s: latencies without swaps, in seconds.
        swapping_s: latencies with swaps.
        swap_s: seconds of every swap.
        memory: bytes that the service's processes had allocated after every swap; 0 where the system does not say.
    """
    latency = {
        name: dict(zip(("p50", "p99"), np.quantile(own, [0.5, 0.99]).tolist(), strict=True))
        for name, own in (("still", still_s), ("swapping", swapping_s))
    }
    settled = memory[int(_SETTLED * len(memory)) :]
    growth = None
    if len(settled) > 1 and all(settled):
        growth = growth_of(settled)
    return {
        "swap_s": {"p50": float(np.median(swap_s)), "max": max(swap_s)},
        "latency_still_s": latency["still"],
        "latency_swapping_s": latency["swapping"],
        "ratio_p99": latency["swapping"]["p99"] / latency["still"]["p99"],
        "answers": {"still": len(still_s), "swapping": len(swapping_s)},
        "memory_bytes": {"settled": settled[0] if settled else None, "last": memory[-1] if memory else None},
        "memory_growth": growth,
        "memory_growth_of_swaps": len(settled),
    }
