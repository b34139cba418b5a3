"""`quorum train`: config in, bundle out, with progress and a summary.

    CONFIG.yaml  --read, encode, train, measure-->  bundle folder

The order of a run, and all of its output; the work is done elsewhere.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from quorum_model.backbone import is_causal
from quorum_model.bundle.manifest import TrainingData
from quorum_model.bundle.read import Bundle
from quorum_model.prompts import PromptEncoder, default_prompt_format
from quorum_model.sources import load_tokenizer, resolve_backbone
from quorum_trainer.config import ConfigError, TrainConfig, read_config
from quorum_trainer.data import (
    Audit,
    EncodedPair,
    SourceSplit,
    audit_splits,
    encode_pairs,
    read_source,
    split_held_out,
    take,
)
from quorum_trainer.ensemble import train_ensemble
from quorum_trainer.export import export_bundle
from quorum_trainer.loop import OnStep, score_pairs
from quorum_trainer.measure import Measured, measure

console = Console(stderr=True)

_TOKEN_BUDGET = 8192


@dataclass(frozen=True, slots=True)
class Dataset:
    """All sources of a config, split, freed of leaks and encoded."""

    train: list[EncodedPair]
    held_out: list[EncodedPair]
    described: list[TrainingData]
    audit: Audit


def train(
    config: Annotated[Path, typer.Argument(help="YAML config; README has a small one.", dir_okay=False)],
    out: Annotated[Path | None, typer.Option(help="Bundle folder to write; must not exist.")] = None,
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
) -> None:
    """Train an ensemble of reward models and write it as a bundle."""
    settings = read_config(config)
    target = out if out is not None else Path("runs") / settings.name
    if target.exists():
        raise ConfigError(f"{target} exists already; choose another --out")
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    bundle, measured = run(settings, target)
    summary = {
        "bundle": str(target),
        "name": bundle.manifest.name,
        "version": bundle.version,
        "seconds": round(time.monotonic() - started, 1),
        "pair_temperature": measured.pair_temperature,
        **measured.metrics,
    }
    _print_summary(bundle, measured)
    if print_json:
        typer.echo(json.dumps(summary))


def run(settings: TrainConfig, target: Path) -> tuple[Bundle, Measured]:
    """Train what `settings` says and write the bundle to `target`."""
    folder = resolve_backbone(settings.backbone, revision=settings.revision)
    tokenizer = load_tokenizer(folder)
    prompt = default_prompt_format(tokenizer, is_causal=is_causal(folder))
    encoder = PromptEncoder(
        tokenizer,
        template=prompt[0].template,
        bos_ids=prompt[1],
        eos_ids=prompt[2],
        max_length=settings.max_length,
        truncation=settings.truncation,
    )
    data = load_data(settings, encoder)
    tokens = sum(pair.num_tokens for pair in data.train)
    console.print(f"{len(data.train)} training pairs ({tokens:,} tokens), {len(data.held_out)} held out")
    with _progress() as progress:
        trained = train_ensemble(settings, folder, data.train, lambda name: _phase_bar(progress, name))
    chosen, rejected = score_pairs(trained.model, data.held_out, _TOKEN_BUDGET)
    measured = measure(chosen.numpy(), rejected.numpy(), data.held_out)
    bundle = export_bundle(
        target,
        settings,
        trained,
        measured,
        folder=folder,
        encoder=encoder,
        prompt=prompt,
        training_data=data.described,
    )
    return bundle, measured


def load_data(settings: TrainConfig, encoder: PromptEncoder) -> Dataset:
    """Read, split, audit and encode every source; what the audit found is printed.

    Raises:
        DataError: a file, line or row that cannot be used.
        ConfigError: nothing is held out, so that nothing could be calibrated, or nothing is left to train on.
    """
    splits, hashes = [], []
    for source in settings.data:
        read = read_source(source)
        kept, held_out = split_held_out(read.pairs, source.held_out, settings.seed)
        splits.append(SourceSplit(source.name, take(kept, source.max_pairs, settings.seed), held_out))
        hashes.append(read.sha256)
    splits, audit = audit_splits(splits)
    for line in audit.summary_lines():
        console.print(line, markup=False, highlight=False)
    if not any(audit.train.values()):
        raise ConfigError("no pairs are left to train on: every prompt is held out")
    if not any(audit.held_out.values()):
        raise ConfigError("no pairs are held out: calibration needs some (data.held_out)")
    train_pairs, held_out_pairs, described = [], [], []
    for source, split, sha256 in zip(settings.data, splits, hashes, strict=True):
        train_pairs += encode_pairs(encoder, split.train, source.name, source.phase, source.weight)
        held_out_pairs += encode_pairs(encoder, split.held_out, source.name)
        described.append(
            TrainingData(name=source.name, sha256=sha256, num_pairs=len(split.train), licence=source.licence)
        )
    return Dataset(train_pairs, held_out_pairs, described, audit)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _phase_bar(progress: Progress, name: str) -> OnStep:
    """A bar for one phase, or a line every 5 % where nobody watches; its loss is a running mean."""
    task = progress.add_task(name, total=None, loss="-")
    running = 0.0

    def on_step(step: int, total: int, losses: list[float]) -> None:
        nonlocal running
        now = sum(losses) / len(losses)
        running = now if step == 1 else 0.95 * running + 0.05 * now
        progress.update(task, total=total, completed=step, loss=f"{running:.4f}")
        if not console.is_terminal and (step * 20 // total > (step - 1) * 20 // total):
            console.print(f"{name}: step {step} of {total}, loss {running:.4f}")

    return on_step


def _print_summary(bundle: Bundle, measured: Measured) -> None:
    table = Table(title=f"{bundle.manifest.name} {bundle.version}: accuracy on held-out pairs")
    for column in ("source", "pairs", "ensemble", "members", "longer wins", "shorter wins"):
        table.add_column(column)
    for source, figures in measured.metrics["held_out"].items():
        table.add_row(
            source,
            str(figures["num_pairs"]),
            f"{figures['ensemble_mean']:.3f}",
            f"{figures['members_average']:.3f}",
            f"{figures['longer_wins']:.3f}",
            f"{figures['shorter_wins']:.3f}",
        )
    console.print(table)
    console.print(f"written to {bundle.path}")
