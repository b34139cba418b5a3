"""`quorum import`: reward models of Transformers, PEFT and TRL become a bundle, with a summary.

    SOURCE…  --import_models-->  bundle folder

All of its output; the work is done elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from quorum_model.bundle.card import metric_tables
from quorum_trainer.importing.build import Imported, ImportOptions, import_models
from quorum_trainer.importing.plan import check_name

console = Console(stderr=True)


def import_bundle(  # noqa: PLR0913 - the options of a command are its interface
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE…",
            help="Folders or hub ids: one reward model, several of one architecture, or PEFT adapters on one base.",
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Bundle folder to write; must not exist.")],
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The adapters' base, where it is not where they say.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The ensemble's name; the folder's if left out.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=8, help="Most tokens of a text; what the model takes if left out.")
    ] = None,
    truncation: Annotated[Literal["left", "right"], typer.Option(help="Which end of a long prompt is cut.")] = "left",
    pooling: Annotated[
        Literal["last", "first", "mean"] | None, typer.Option(help="The architecture's own if left out.")
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(
            help="A Jinja chat template, special tokens included, instead of the tokenizer's.", dir_okay=False
        ),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Held-out pairs (JSON lines) to calibrate on.", dir_okay=False)
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the models, for the card.")] = None,
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
) -> None:
    """Make a bundle of reward models that Transformers, PEFT or TRL saved; its scores are theirs."""
    options = ImportOptions(
        name=check_name(name if name is not None else out.absolute().name),
        base=base,
        max_length=max_length,
        truncation=truncation,
        pooling=pooling,
        template=template,
        pairs=pairs,
        licence=licence,
    )
    with console.status("importing: every model is loaded and scores, by its own library and by Quorum"):
        imported = import_models(sources, out, options)
    _print_summary(imported)
    if print_json:
        typer.echo(json.dumps(_summary(imported)))


def _summary(imported: Imported) -> dict[str, Any]:
    manifest = imported.bundle.manifest
    return {
        "bundle": str(imported.bundle.path),
        "name": manifest.name,
        "version": imported.bundle.version,
        "kind": manifest.kind,
        "members": [member.name for member in manifest.members],
        "backbone": manifest.backbone.source,
        "pooling": manifest.pooling,
        "max_length": manifest.max_length,
        "prompt_format": imported.prompt_format,
        "bos_ids": manifest.bos_ids,
        "eos_ids": manifest.eos_ids,
        "calibrated": imported.measured is not None,
        "pair_temperature": manifest.pair_temperature,
        **manifest.metrics,
    }


def _print_summary(imported: Imported) -> None:
    manifest = imported.bundle.manifest
    lines = [
        f"{manifest.name} {imported.bundle.version}: kind {manifest.kind}, {len(manifest.members)} members",
        f"backbone: {manifest.backbone.source}; pooling: {manifest.pooling}; at most {manifest.max_length} tokens",
        f"prompt format: {imported.prompt_format}; BOS {manifest.bos_ids}, EOS {manifest.eos_ids}",
    ]
    if imported.measured is None:
        lines.append("calibration: none, scores are the models' own logits (--pairs FILE measures one)")
    for table in metric_tables(manifest.metrics):
        lines.append(f"{table.title}: " + ", ".join(table.header[1:]))
        lines += [f"  {row[0]}: " + ", ".join(row[1:]) for row in table.rows]
    for line in [*lines, f"written to {imported.bundle.path}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
