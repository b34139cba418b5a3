"""`quorum bench parity`: what a bundle's scores lose in another dtype, on real text.

bundle, pairs  --scores in fp32 and in the other dtype, calibrated-->  a table on stderr, one JSON line on stdout
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from quorum_client.errors import InvalidRequest
from quorum_model.benchmark.environment import describe_environment
from quorum_model.benchmark.parity_figures import LARGEST_DIFFERENCE, parity_figures
from quorum_model.benchmark.workload import encode_dialogues, read_dialogues
from quorum_model.bundle.read import Bundle, read_bundle, resolve_bundle
from quorum_model.calibration import FloatArray, normalize
from quorum_model.errors import SelfTestFailed, Unsupported
from quorum_model.loading import choose_device, choose_dtype, load_member_scorer
from quorum_model.prompts import load_prompt_encoder

console = Console(stderr=True)


def parity(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, a hub id, or 'default'.")],
    *,
    data: Annotated[Path, typer.Option(help="Pairs (JSON lines: prompt, chosen, rejected).", dir_okay=False)],
    dtype: Annotated[str, typer.Option(help="What is compared with float32.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Arithmetic threads; 0 leaves them as they are.")] = 0,
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
) -> None:
    """Compare a bundle's scores in another dtype with those in fp32: each member, mean, std, order of pairs."""
    if threads:
        torch.set_num_threads(threads)
    target = choose_device(device)
    other = str(choose_dtype(dtype, target)).removeprefix("torch.")
    verified = read_bundle(resolve_bundle(bundle))
    sequences, pairs = _read_pairs(verified, data)
    result: dict[str, Any] = {
        "bench": "parity",
        "bundle": verified.manifest.name,
        "version": verified.version,
        "data": data.name,
        "dtype": other,
        "device": str(target),
    }
    names = [member.name for member in verified.manifest.members]
    exact = _calibrated(verified, sequences, str(target), "float32")
    try:
        result |= parity_figures(exact, _calibrated(verified, sequences, str(target), other), pairs, names)
        _print(result)
    except SelfTestFailed as error:  # so far away that it would not be served
        result |= dict.fromkeys(("members", "mean", "std", "order"))
        result |= {"passes": False, "reasons": {"members": error.message}}
        console.print(f"does not pass: {error.message}", highlight=False, markup=False)
    if print_json:
        typer.echo(json.dumps(result | {"environment": describe_environment()}))


def _read_pairs(bundle: Bundle, path: Path) -> tuple[list[list[int]], NDArray[np.int64]]:
    """Token ids of all texts, and which two of them are a pair."""
    dialogues = read_dialogues(path)
    for dialogue in dialogues:
        if len(dialogue.items) != 2:
            raise InvalidRequest(f"{path.name}, line {dialogue.line}: parity needs pairs: prompt, chosen, rejected")
    encoded = encode_dialogues(dialogues, load_prompt_encoder(bundle), path.name)
    sequences = [ids for pair in encoded for ids in pair]
    return sequences, np.arange(len(sequences)).reshape(-1, 2)


def _calibrated(bundle: Bundle, sequences: list[list[int]], device: str, dtype: str) -> FloatArray:
    console.print(f"scoring {len(sequences):,} texts in {dtype}", highlight=False)
    raw = load_member_scorer(bundle, device=device, dtype=dtype).score(sequences).raw
    if not np.isfinite(raw).all():
        count = int((~np.isfinite(raw)).any(axis=0).sum())
        raise Unsupported(f"{dtype} gives scores that are no numbers to {count} of {len(sequences)} texts")
    calibrations = [member.calibration for member in bundle.manifest.members]
    return normalize(raw, [own.mean for own in calibrations], [own.scale for own in calibrations])


def _print(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['bundle']}@{result['version']}: |{result['dtype']} - float32|, calibrated units")
    for column in ("of", "p50", "p99", "max"):
        table.add_column(column)
    for name, own in {**result["members"], "mean": result["mean"], "std": result["std"]}.items():
        if own is not None:
            table.add_row(name, *(f"{own[key]:.4f}" for key in ("p50", "p99", "max")))
    console.print(table)
    order = result["order"]
    kept = "no pair" if order["kept"] is None else f"{order['kept']:.2%} in order"
    console.print(f"{order['clear_pairs']:,} of {order['pairs']:,} pairs are clear: {kept}", highlight=False)
    verdict = "passes" if result["passes"] else f"does not pass (p99 within {LARGEST_DIFFERENCE}, every clear order)"
    console.print(verdict, highlight=False)
