"""`quorum bench prefix`: what it is worth to compute a shared prompt once, on a causal backbone.

options  --random Llama, one prompt and N responses-->  sharing on and off, in turns  -->  table, JSON line
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from quorum_model.backbone import load_backbone
from quorum_model.benchmark.agreement import check_agreement
from quorum_model.benchmark.environment import describe_environment
from quorum_model.benchmark.flops import LayerShape, count_flops, layer_shapes, separate, with_prefix
from quorum_model.benchmark.random_backbone import LlamaShape
from quorum_model.benchmark.random_ensemble import draw_ensemble
from quorum_model.benchmark.score import BenchDtype, choose_bench_dtype
from quorum_model.benchmark.turns import Prepare, take_turns
from quorum_model.loading import choose_device, load_member_scorer
from quorum_model.member_scorer import MemberScorer

console = Console(stderr=True)


def prefix(  # noqa: PLR0913 - the options of a command are its interface
    *,
    layers: Annotated[int, typer.Option(min=1, help="Of the backbone.")] = 6,
    hidden: Annotated[int, typer.Option(min=2)] = 512,
    ffn: Annotated[int, typer.Option(min=1)] = 1408,
    heads: Annotated[int, typer.Option(min=1)] = 8,
    key_heads: Annotated[int, typer.Option(min=1)] = 4,
    members: Annotated[int, typer.Option(min=1, max=100)] = 5,
    rank: Annotated[int, typer.Option(min=1)] = 16,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens that all sequences begin with.")] = 512,
    responses: Annotated[int, typer.Option(min=2)] = 16,
    response: Annotated[int, typer.Option(min=1, help="Tokens of each response.")] = 128,
    dtype: Annotated[BenchDtype, typer.Option(help="auto is bfloat16 where the machine multiplies it.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Timed turns, with sharing and without.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="Arithmetic threads; 0 leaves them as they are.")] = 0,
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
) -> None:
    """Time the responses to one prompt, its tokens computed once and computed for each."""
    if threads:
        torch.set_num_threads(threads)
    target = choose_device(device)
    chosen, reason = choose_bench_dtype(dtype, target)
    length = prompt + response
    with tempfile.TemporaryDirectory(prefix="quorum-bench-") as work:
        shape = LlamaShape(layers, hidden, ffn, heads, key_heads)
        folder = shape.save(Path(work) / "random", max_length=length)
        backbone = load_backbone(folder)
        shapes, vocab_size = layer_shapes(backbone), backbone.vocab_size
        ensemble = draw_ensemble(
            folder, kind="lora", members=members, rank=rank, layers="all", max_length=max(length, 8)
        )
        bundle = ensemble.write(Path(work) / "ensemble")
        # Without a store: from the second round on it would hold what the first one computed.
        load = partial(load_member_scorer, bundle, device=str(target), dtype=chosen, store_bytes=0)
        unshared = load(share_prefixes=False)
        # At one budget: two trials on a noisy machine may choose two.
        shared = load(share_prefixes=True, token_budget=unshared.token_budget)
        scorers = {"sharing_on": shared, "sharing_off": unshared}
    ids = draw_responses(vocab_size, prompt=prompt, responses=responses, response=response)
    result = {
        "bench": "prefix",
        "backbone": {"layers": layers, "hidden": hidden, "ffn": ffn, "heads": heads, "key_heads": key_heads},
        "members": members,
        "rank": rank,
        "prompt": prompt,
        "responses": responses,
        "response": response,
        "dtype": chosen,
        "device": str(target),
        "rounds": rounds,
        **compare(scorers, ids, chosen, rounds),
        "flop_limit": flop_limit(shapes, prompt=prompt, responses=[response] * responses, members=members),
        "reasons": {"dtype": reason} if reason else {},
        "environment": describe_environment(),
    }
    _print(result)
    if print_json:
        typer.echo(json.dumps(result))


def compare(scorers: Mapping[str, MemberScorer], ids: list[list[int]], dtype: str, rounds: int) -> dict[str, Any]:
    """Figures of the same sequences with sharing and without.

    Args:
        scorers: `sharing_on` and `sharing_off`.
        ids: the sequences.
        dtype: what both compute in.
        rounds: timed ones.

    Raises:
        ContestantsDisagree: sharing changes a score by more than rounding.
    """
    first = {name: scorer.score(ids) for name, scorer in scorers.items()}
    raw = {name: own.raw for name, own in first.items()}
    differences = check_agreement(raw, dict.fromkeys(raw, dtype), "sharing_off")

    def prepare(scorer: MemberScorer) -> Prepare:
        return lambda: lambda: scorer.score(ids)

    turns = take_turns({name: prepare(scorer) for name, scorer in scorers.items()}, rounds, _say)
    return {
        "ratio_sharing": turns.ratio("sharing_off", "sharing_on"),
        "computed_tokens": {name: own.computed_tokens for name, own in first.items()},
        "token_budget": {name: scorer.token_budget for name, scorer in scorers.items()},
        "largest_difference": differences["sharing_on"],
        "largest_score_difference": float(np.abs(raw["sharing_on"] - raw["sharing_off"]).max()),
        "median_seconds": {name: turns.median(name) for name in turns.seconds},
        "seconds": turns.seconds,
    }


def draw_responses(vocab_size: int, *, prompt: int, responses: int, response: int) -> list[list[int]]:
    """Sequences of random token ids that share the first `prompt`, and no more than those."""
    draw = random.Random(0)  # noqa: S311 - any tokens do
    shared = [draw.randrange(vocab_size) for _ in range(prompt)]
    openings = draw.sample(range(vocab_size), responses)
    return [[*shared, opening, *(draw.randrange(vocab_size) for _ in range(response - 1))] for opening in openings]


def flop_limit(shapes: list[LayerShape], *, prompt: int, responses: list[int], members: int) -> float:
    """Operations without sharing over those with it: what the ratio of times cannot honestly exceed."""
    whole = separate([prompt + own for own in responses], is_causal=True, pooling="last")
    shared = with_prefix(prompt, responses)
    totals = [count_flops(shapes, extent, members=members, first_adapted=0).total for extent in (whole, shared)]
    return totals[0] / totals[1]


def _say(name: str, number: int) -> None:
    console.print(f"round {number}: {name}", highlight=False)


def _print(result: dict[str, Any]) -> None:
    for name, seconds in result["median_seconds"].items():
        tokens = result["computed_tokens"][name]
        console.print(f"{name}: {seconds:.3f} s, {tokens:,} tokens computed", highlight=False)
    console.print(
        f"{result['ratio_sharing']:.2f} times as fast with sharing; operations allow {result['flop_limit']:.2f}; "
        f"scores differ by at most {result['largest_score_difference']:.2g}",
        highlight=False,
    )
