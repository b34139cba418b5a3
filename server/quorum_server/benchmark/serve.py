"""`quorum bench serve`: what the service costs on top of the engine, and what batching across requests is worth.

options  --servers in processes, which must agree, in turns-->  a table on stderr, one JSON line on stdout
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from quorum_client.errors import InvalidRequest
from quorum_client.types import ScoreItem
from quorum_model.backbone import is_causal
from quorum_model.benchmark.agreement import check_agreement
from quorum_model.benchmark.environment import describe_environment
from quorum_model.benchmark.random_backbone import find_backbone
from quorum_model.benchmark.random_ensemble import RandomEnsemble, draw_ensemble
from quorum_model.benchmark.score import DEFAULT_BACKBONE, BenchDtype, choose_bench_dtype
from quorum_model.benchmark.turns import Turns, take_turns, unprepared
from quorum_model.benchmark.workload import plain_encoder, read_dialogues
from quorum_model.loading import choose_device, load_member_scorer
from quorum_server.benchmark.blocking_server import CODE as BLOCKING
from quorum_server.benchmark.clients import Answers, post_all
from quorum_server.benchmark.processes import QUORUM, ServerProcess

console = Console(stderr=True)

OFFLINE, BARE, BLOCKING_SAME, BLOCKING_FP32 = "offline", "bare_forward", "blocking_same_dtype", "blocking_float32"
AGAINST_BLOCKING = 64
"""Requests at a time, where the service meets its peer and the offline engine."""


def serve(  # noqa: PLR0913 - the options of a command are its interface
    *,
    data: Annotated[Path, typer.Option(help="Dialogues or pairs (JSON lines).", dir_okay=False)],
    backbone: Annotated[str, typer.Option(help="As in a training config.")] = DEFAULT_BACKBONE,
    members: Annotated[int, typer.Option(min=1, max=100)] = 5,
    rank: Annotated[int, typer.Option(min=1)] = 16,
    dtype: Annotated[
        BenchDtype, typer.Option(help="Of the engine; auto is bfloat16 where the machine multiplies it.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    sequences: Annotated[int, typer.Option(min=2, help="Texts of one turn, each a request.")] = 512,
    slow_sequences: Annotated[
        int, typer.Option(min=2, help="Of these, for a turn of who computes one at a time; at most `sequences`.")
    ] = 128,
    max_length: Annotated[int, typer.Option(min=8, help="Longer texts are left out, in tokens.")] = 256,
    concurrency: Annotated[list[int] | None, typer.Option(help="Requests at a time; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed turns of every contestant.")] = 3,
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
) -> None:
    """Time single-text requests against the bare engine, and against a server that computes in the request."""
    target = choose_device(device)
    chosen, reason = choose_bench_dtype(dtype, target)
    levels = sorted({*(concurrency or [1, 8, 64, 256]), 1, AGAINST_BLOCKING})
    with tempfile.TemporaryDirectory(prefix="quorum-bench-") as work, ExitStack() as stack:
        folder = find_backbone(backbone, Path(work), max_length=max_length)
        texts, ids = _texts(folder, data, sequences, max_length)
        ensemble = draw_ensemble(folder, kind="lora", members=members, rank=rank, layers="all", max_length=max_length)
        contest = _Contest(ensemble, folder, texts, ids, chosen, target, max_length, slow_sequences)
        contest.enter(Path(work), levels, stack)
        differences = contest.check()
        prepares: dict[str, Callable[[], Callable[[], object]]] = {
            name: unprepared(run) for name, run in contest.runs.items()
        }
        contest.latencies.clear()
        turns = take_turns(prepares, rounds, lambda name, number: _say(f"round {number}: {name}"))
    result: dict[str, Any] = {
        "bench": "serve",
        "backbone": backbone,
        "members": members,
        "rank": rank,
        "dtype": chosen,
        "device": str(target),
        "data": data.name,
        "sequences": len(ids),
        "tokens": sum(map(len, ids)),
        "max_length": max_length,
        "slow_sequences": contest.count_of(BARE),
        **serve_figures(turns, contest.latencies, {name: contest.count_of(name) for name in contest.runs}),
        "seconds": turns.seconds,
        "largest_difference": differences,
        "token_budget": contest.token_budget,
        "rounds": rounds,
        "reasons": {"dtype": reason} if reason else {},
        "environment": describe_environment(),
    }
    _print(result)
    if print_json:
        typer.echo(json.dumps(result))


class _Contest:
    """Who competes: the engine alone, the service at several numbers of clients, the blocking peer.

    runs: each scores every text, raw (K, B). latencies: of every request of a contestant, in seconds.
    """

    def __init__(
        self,
        ensemble: RandomEnsemble,
        backbone: Path,
        texts: list[str],
        ids: list[list[int]],
        dtype: str,
        device: torch.device,
        max_length: int,
        slow_count: int,
    ) -> None:
        self._slow_count = min(slow_count, len(ids))
        self._ensemble = ensemble
        self._backbone = backbone
        self._texts = texts
        self._ids = ids
        self._dtype = dtype
        self._device = device
        self._max_length = max_length
        self.runs: dict[str, Callable[[], Any]] = {}
        self.dtypes: dict[str, str] = {}
        self.latencies: dict[str, list[float]] = {}
        self.token_budget = 0

    def enter(self, work: Path, levels: list[int], stack: ExitStack) -> None:
        """Start them all."""
        bundle = self._ensemble.write(work / "ensemble")
        engine = load_member_scorer(bundle, device=str(self._device), dtype=self._dtype, store_bytes=0)
        self.token_budget = engine.token_budget
        self._add(OFFLINE, self._dtype, lambda: engine.score(self._ids).raw)
        self._add(BARE, self._dtype, lambda: self._one_by_one(engine))
        # The budget is given, not tried again: trials differ, and the same engine is to be compared.
        options = ["serve", "--bundle", str(bundle.path), "--port", "0", "--dtype", self._dtype]
        options += ["--device", str(self._device), "--token-budget", str(engine.token_budget), "--log-level", "warning"]
        service = stack.enter_context(ServerProcess(QUORUM, options))
        for level in levels:
            self._add(quorum_at(level), self._dtype, partial(self._ask_quorum, service.url, level))
        adapters = [str(folder) for folder in self._ensemble.write_adapters(work / "adapters")]
        peers = {BLOCKING_SAME: self._dtype} | ({BLOCKING_FP32: "float32"} if self._dtype != "float32" else {})
        for name, dtype in peers.items():
            settings: dict[str, Any] = {"backbone": str(self._backbone), "adapters": adapters, "dtype": dtype}
            settings |= {"device": str(self._device), "max_length": self._max_length}
            peer = stack.enter_context(ServerProcess(BLOCKING, [json.dumps(settings)]))
            self._add(name, dtype, partial(self._ask_blocking, peer.url, name))

    def count_of(self, name: str) -> int:
        """Texts of one turn: fewer for who computes one at a time, whose rate does not depend on it."""
        return self._slow_count if name in (BARE, quorum_at(1), BLOCKING_SAME, BLOCKING_FP32) else len(self._ids)

    def check(self) -> dict[str, float]:
        """Run everyone once; the largest difference from the offline engine.

        Raises:
            ContestantsDisagree: see `check_agreement`.
        """
        scores = {name: run() for name, run in self.runs.items()}
        differences = {}
        for name, own in scores.items():
            pair = {OFFLINE: scores[OFFLINE][:, : own.shape[1]], name: own}
            differences[name] = check_agreement(pair, self.dtypes, OFFLINE)[name]
        return differences

    def _add(self, name: str, dtype: str, run: Callable[[], Any]) -> None:
        self.runs[name] = run
        self.dtypes[name] = dtype

    def _one_by_one(self, engine: Any) -> Any:
        raw = []
        for sequence in self._ids[: self.count_of(BARE)]:
            started = time.perf_counter()
            raw.append(engine.score([sequence]).raw)
            self.latencies.setdefault(BARE, []).append(time.perf_counter() - started)
        return np.concatenate(raw, axis=1)

    def _ask_quorum(self, url: str, level: int) -> Any:
        bodies = [{"inputs": [{"text": text}], "normalize": False} for text in self._texts_of(quorum_at(level))]
        answers = self._ask(f"{url}/score", bodies, level, quorum_at(level))
        return np.array([body["results"][0]["members"] for body in answers.bodies]).T

    def _ask_blocking(self, url: str, name: str) -> Any:
        bodies = [{"query": [text]} for text in self._texts_of(name)]
        answers = self._ask(f"{url}/get_reward", bodies, AGAINST_BLOCKING, name)
        return np.array([[own[0] for own in body["rewards"]] for body in answers.bodies]).T

    def _texts_of(self, name: str) -> list[str]:
        return self._texts[: self.count_of(name)]

    def _ask(self, url: str, bodies: list[dict[str, Any]], level: int, name: str) -> Answers:
        answers = post_all(url, bodies, level)
        self.latencies.setdefault(name, []).extend(answers.latencies_s)
        return answers


def quorum_at(level: int) -> str:
    """The service's name in the contest, with so many requests at a time."""
    return f"quorum_at_{level}"


def serve_figures(turns: Turns, latencies: dict[str, list[float]], counts: dict[str, int]) -> dict[str, Any]:
    """Ratios, requests a second, and latencies of a contest.

    Args:
        turns: of all contestants.
        latencies: seconds of every request, by contestant.
        counts: requests of one turn, by contestant.
    """
    peer = quorum_at(AGAINST_BLOCKING)

    def times_as_fast(other: str) -> float:
        return turns.ratio(other, peer) * counts[peer] / counts[other]

    return {
        "fraction_of_offline": times_as_fast(OFFLINE),
        "ratio_p50_over_bare_forward": statistics.median(latencies[quorum_at(1)]) / statistics.median(latencies[BARE]),
        "ratio_blocking_same_dtype": times_as_fast(BLOCKING_SAME),
        "ratio_blocking_float32": times_as_fast(BLOCKING_FP32) if BLOCKING_FP32 in turns.seconds else None,
        "requests_per_second": {name: counts[name] / turns.median(name) for name in turns.seconds},
        "latency_s": {
            name: dict(zip(("p50", "p99"), np.quantile(own, [0.5, 0.99]).tolist(), strict=True))
            for name, own in latencies.items()
        },
    }


def _texts(backbone: Path, data: Path, count: int, max_length: int) -> tuple[list[str], list[list[int]]]:
    """Rendered texts that fit, and their token ids: what is cut is not the same for everyone."""
    encoder = plain_encoder(backbone, is_causal=is_causal(backbone), max_length=max_length)
    texts: list[str] = []
    ids: list[list[int]] = []
    items = (item for dialogue in read_dialogues(data) for item in dialogue.items)
    for item in items:
        if item.prompt is None or item.response is None:
            raise InvalidRequest(f"{data.name}: every line needs a prompt and its responses")
        text = encoder.render_pair(item.prompt, item.response)
        encoded = encoder.encode(ScoreItem(text=text))
        if not encoded.truncated:
            texts.append(text)
            ids.append(encoded.ids)
        if len(ids) == count:
            return texts, ids
    raise InvalidRequest(f"{data.name} holds {len(ids)} texts of at most {max_length} tokens, {count} are needed")


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _print(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['members']} members, {result['dtype']} on {result['device']}, "
        f"{result['sequences']} requests of one text, {result['tokens']:,} tokens"
    )
    for column in ("contestant", "requests/s", "p50, ms", "p99, ms"):
        table.add_column(column)
    for name, rate in result["requests_per_second"].items():
        own = result["latency_s"].get(name)
        table.add_row(name, f"{rate:.1f}", *(f"{1000 * own[key]:.1f}" if own else "" for key in ("p50", "p99")))
    console.print(table)
    for name, value in result.items():
        if name.startswith(("ratio", "fraction")):
            _say(f"{name}: {value:.3f}" if value is not None else f"{name}: not measured (the engine computes in fp32)")
