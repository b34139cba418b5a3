"""`quorum train`: config in, bundle out, with progress, checkpoints and a summary.

    CONFIG.yaml  --read, prepare, train, measure, export-->  bundle folder

The order of a run, and all of its output; the work is done elsewhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from accelerate import Accelerator
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quorum_model.bundle.read import Bundle
from quorum_model.loading import choose_device
from quorum_trainer.config import ConfigError, TrainConfig, read_config
from quorum_trainer.export import export_bundle
from quorum_trainer.measure import Measured, measure
from quorum_trainer.prepare import Base, Dataset, find_base, load_data, require_portable
from quorum_trainer.runs.progress import ProgressReporter
from quorum_trainer.runs.publish import check_repository, push_bundle
from quorum_trainer.runs.run_folder import RunFolder
from quorum_trainer.runs.stopping import stopping
from quorum_trainer.runs.trackers import TrackerReporter, make_accelerator, start_trackers
from quorum_trainer.training.ensemble import TrainedEnsemble, train_ensemble
from quorum_trainer.training.held_out import score_pairs
from quorum_trainer.training.loop import Surroundings
from quorum_trainer.training.memory import estimate_memory
from quorum_trainer.training.reports import Together
from quorum_trainer.training.workers import AccelerateWorkers

console = Console(stderr=True)


def train(
    config: Annotated[Path, typer.Argument(help="YAML config; README has a small one.", dir_okay=False)],
    out: Annotated[Path | None, typer.Option(help="Bundle folder to write; must not exist.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that was begun for --out.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    push: Annotated[str | None, typer.Option(help="Hub repository (org/name) that the bundle is uploaded to.")] = None,
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
) -> None:
    """Train an ensemble of reward models and write it as a bundle.

    Beside the bundle, `OUT.run/` holds the resolved config, checkpoints and the trackers' files.
    """
    settings = read_config(config)
    target = out if out is not None else Path("runs") / settings.name
    if push is not None:
        check_repository(push)
    started = time.monotonic()
    finished = run(settings, target, resume=resume, device=device, for_hub=push is not None)
    if finished is None:  # another process writes the bundle
        return
    bundle, measured = finished
    _print_summary(bundle, measured)
    summary = {
        "bundle": str(target),
        "name": bundle.manifest.name,
        "version": bundle.version,
        "seconds": round(time.monotonic() - started, 1),
        "pair_temperature": measured.pair_temperature,
        **bundle.manifest.metrics,
    }
    if push is not None:
        summary["pushed_to"] = push_bundle(bundle, push)
        console.print(f"uploaded to {summary['pushed_to']}")
    if print_json:
        typer.echo(json.dumps(summary))


def run(
    settings: TrainConfig, target: Path, *, resume: bool = False, device: str = "auto", for_hub: bool = False
) -> tuple[Bundle, Measured] | None:
    """Train what `settings` says and write the bundle to `target`; None in all processes but the first.

    Args:
        settings: checked.
        target: must not exist.
        resume: go on with the run beside `target`.
        device: auto, cpu, cuda.
        for_hub: refuse at once what others could not load.

    Raises:
        ConfigError: `target` exists, or the run folder beside it holds a run and `resume` was not said.
        TrainingInterrupted: by a signal, after a checkpoint.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already; choose another --out")
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    chosen = choose_device(device)
    folder = target.with_name(f"{target.name}.run")
    accelerator = make_accelerator(settings, folder, on_cpu=chosen.type == "cpu")
    chosen = accelerator.device if accelerator.num_processes > 1 else chosen
    base = find_base(settings)
    if for_hub:
        require_portable(settings, base)
    data = load_data(settings, base.encoder)
    keeper = RunFolder(
        folder, checkpoint_seconds=60 * settings.checkpoint_minutes, is_writer=accelerator.is_main_process
    )
    keeper.claim(settings, {**base.hashes(), **data.hashes()}, resume=resume)
    accelerator.wait_for_everyone()
    start_trackers(accelerator, settings)
    quiet = not accelerator.is_main_process
    with _tracked(accelerator), stopping(keeper, console), ProgressReporter(console, quiet=quiet) as progress:
        where = f"{chosen}, {accelerator.num_processes} processes" if accelerator.num_processes > 1 else str(chosen)
        progress.say(*_opening_lines(data, where), *estimate_memory(settings, base.start, data.train, chosen).lines())
        around = Surroundings(
            keeper=keeper,
            reporter=Together([progress, TrackerReporter(accelerator)]),
            workers=AccelerateWorkers(accelerator),
            held_out=data.held_out,
        )
        trained = train_ensemble(settings, base.start, data.train, around, chosen)
    if not accelerator.is_main_process:
        return None
    finished = _measure_and_export(settings, target, base, data, trained)
    keeper.close()
    return finished


def _measure_and_export(
    settings: TrainConfig, target: Path, base: Base, data: Dataset, trained: TrainedEnsemble
) -> tuple[Bundle, Measured]:
    decided = [pair for pair in data.held_out if not pair.tie]
    chosen, rejected = score_pairs(trained.model, decided)
    measured = measure(chosen.numpy(), rejected.numpy(), decided)
    metrics = {**measured.metrics, "data": data.audit.as_metrics()}
    described = [*base.training_data(), *data.described]
    bundle = export_bundle(target, settings, trained, measured, base=base, training_data=described, metrics=metrics)
    return bundle, measured


def _opening_lines(data: Dataset, where: str) -> list[str]:
    tokens = sum(pair.num_tokens for pair in data.train)
    return [
        f"{len(data.train)} training pairs ({tokens:,} tokens), {len(data.held_out)} held out; on {where}",
        *data.audit.summary_lines(),
    ]


@contextmanager
def _tracked(accelerator: Accelerator) -> Iterator[None]:
    """Trackers are closed whatever happens."""
    try:
        yield
    finally:
        accelerator.end_training()


def _print_summary(bundle: Bundle, measured: Measured) -> None:
    table = Table(title=f"{bundle.manifest.name} {bundle.version}: accuracy on held-out pairs")
    for column in ("source", "pairs", "ensemble", "members", "longer wins", "shorter wins"):
        table.add_column(column)
    for source, figures in measured.metrics["held_out"].items():
        table.add_row(
            escape(source),
            str(figures["num_pairs"]),
            f"{figures['ensemble_mean']:.3f}",
            f"{figures['members_average']:.3f}",
            f"{figures['longer_wins']:.3f}",
            f"{figures['shorter_wins']:.3f}",
        )
    console.print(table)
    console.print(f"written to {bundle.path}")
