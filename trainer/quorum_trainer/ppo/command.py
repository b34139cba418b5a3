"""`quorum ppo`: config in, a policy's adapter in a folder out, with the log of the way there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from quorum_model.loading import choose_device
from quorum_trainer.ppo.config import read_ppo_config
from quorum_trainer.runs.run_folder import RunFolder
from quorum_trainer.runs.stopping import stopping

console = Console(stderr=True)


def ppo(
    config: Annotated[Path, typer.Argument(help="YAML config; docs/ppo.md has one.", dir_okay=False)],
    *,
    out: Annotated[Path | None, typer.Option(help="Folder to write; must not exist.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that was begun for --out.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N: of the trainer.")] = "auto",
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
) -> None:
    """Train a policy by reinforcement learning on the rewards of a Quorum server.

    Needs a vLLM server for the completions (`make generator`) and a Quorum server for the rewards (`quorum serve`).
    Beside the folder, `OUT.run/` holds checkpoint, journal, log and trackers' files.
    """
    settings = read_ppo_config(config)
    target = out if out is not None else Path("runs") / settings.name
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    chosen = choose_device(device)
    from quorum_trainer.ppo.run import run  # here, because PEFT takes seconds that a wrong config does without
    from quorum_trainer.runs.trackers import make_accelerator, start_trackers

    folder = RunFolder(target.with_name(f"{target.name}.run"), checkpoint_seconds=0)
    trackers = make_accelerator(settings, folder.path, on_cpu=chosen.type == "cpu")
    start_trackers(trackers, settings)

    def track(figures: dict[str, float], step: int) -> None:
        trackers.log(figures, step=step)

    with stopping(folder, console):
        result = asyncio.run(run(settings, target, device=chosen, folder=folder, resume=resume, say=_say, track=track))
    trackers.end_training()
    console.print(_table(result.summary))
    _say(f"written to {target}: PEFT's adapter, log.jsonl, summary.json, curves.png")
    if print_json:
        typer.echo(json.dumps({"folder": str(target), **result.summary}))


def _table(summary: dict[str, Any]) -> Table:
    table = Table("", "first quarter", "last quarter", "standard error of the difference")
    for name, own in summary.items():
        if isinstance(own, dict) and "first" in own:
            error = own["standard_error"]
            table.add_row(name, f"{own['first']:.4g}", f"{own['last']:.4g}", "-" if error is None else f"{error:.2g}")
    seconds = summary["seconds"]
    for phase in ("step", "waited", "scoring_alone", "look_back", "learn"):
        table.add_row(f"seconds, {phase}", "", f"{seconds[phase]:.1f}", "")
    return table


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False)
