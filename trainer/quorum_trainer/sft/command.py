"""`quorum sft`: config in, a causal model in a folder out."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from quorum_model.loading import choose_device
from quorum_trainer.runs.run_folder import RunFolder
from quorum_trainer.runs.stopping import stopping
from quorum_trainer.sft.config import read_sft_config

console = Console(stderr=True)


def sft(
    config: Annotated[Path, typer.Argument(help="YAML config; docs/sft.md has one.", dir_okay=False)],
    *,
    out: Annotated[Path | None, typer.Option(help="Folder to write; must not exist.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that was begun for --out.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
) -> None:
    """Train a causal model on dialogues, so that there is a policy: a new small one, or one of a folder or hub.

    Beside the folder, `OUT.run/` holds the resolved config and a checkpoint.
    """
    settings = read_sft_config(config)
    target = out if out is not None else Path("runs") / settings.name
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    chosen = choose_device(device)
    from quorum_trainer.sft.run import run  # here, because TRL takes seconds that a wrong config does without

    keeper = RunFolder(target.with_name(f"{target.name}.run"), checkpoint_seconds=math.inf)
    with stopping(keeper, console):
        result = run(settings, target, device=chosen, keeper=keeper, resume=resume, say=_say)
    _say(f"written to {target}: serve it with make generator MODEL={target}")
    if print_json:
        typer.echo(json.dumps({**asdict(result), "folder": str(target)}))


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False)
