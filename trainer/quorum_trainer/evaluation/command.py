"""`quorum eval`: how good a bundle is on files of pairs, RM-Bench and Best-of-N pools.

    bundle, files  --read, score, report-->  tables on stderr, JSON, a folder of report and plots

The order of a run and all of its output; figures are computed elsewhere.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from quorum_trainer.evaluation.folder import check_folder, write_folder
from quorum_trainer.evaluation.report import KINDS, Evaluated, build_report, read_files
from quorum_trainer.evaluation.scores import OpenBundle, score_with_progress
from quorum_trainer.evaluation.scorings import Scoring, choose_scorings
from quorum_trainer.evaluation.tables import INTERVALS, files_table, print_tables, report_tables

console = Console(stderr=True)


def evaluate(  # noqa: PLR0913 - the options of a command are its interface
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, a hub id, or 'default'.")],
    *,
    pairs: Annotated[list[Path] | None, typer.Option(help="Preference pairs, JSON lines; may be repeated.")] = None,
    rm_bench: Annotated[list[Path] | None, typer.Option(help="RM-Bench: three styles a side; may be repeated.")] = None,
    bon: Annotated[
        list[Path] | None, typer.Option(help="Pools with gold, or chosen against several rejected; may be repeated.")
    ] = None,
    one_policy: Annotated[
        bool, typer.Option("--one-policy", help="Pools are samples of one policy each: add KL and Gao's fit.")
    ] = False,
    mode: Annotated[list[str] | None, typer.Option(help="Modes to compare with the mean. Default: all.")] = None,
    beta: Annotated[list[float] | None, typer.Option(help="Betas of these modes. Default: each mode's own.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for report.json, report.md and plots.")] = None,
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float64")] = "auto",
) -> None:
    """Evaluate a bundle: accuracy, calibration, what its uncertainty knows, and Best-of-N.

    Intervals are 95 %, by a bootstrap over prompts.
    """
    if report is not None:
        check_folder(report)
    files = read_files(pairs or [], rm_bench or [], bon or [], is_one_policy=one_policy)
    opened = OpenBundle.open(bundle, device=device, dtype=dtype)
    manifest = opened.bundle.manifest
    default = Scoring(manifest.default_mode, manifest.default_beta)
    scorings = choose_scorings(mode or [], beta or [], opened.scorer.num_members, default)
    evaluated = Evaluated(opened, scorings, files, one_policy)
    console.print(
        f"{manifest.name}@{opened.bundle.version}: {manifest.kind}, {opened.scorer.num_members} members, "
        f"{opened.scorer.dtype} on {opened.scorer.device}; {sum(len(file.rows) for file in files):,} rows"
    )
    started = time.monotonic()
    scored = score_with_progress(opened, [row for file in files for row in file.rows], console)
    kind_of = {file.label: file.kind for file in files}
    evaluated.scored = {kind: [one for one in scored if kind_of[one.row.file] == kind] for kind in KINDS}
    figures = build_report(evaluated, bundle, time.monotonic() - started)
    print_tables([files_table(figures), *report_tables(figures, every_file=False)], console)
    console.print(f"Brackets hold 95 % intervals by {INTERVALS}.", markup=False)
    for warning in figures["warnings"]:
        console.print(f"warning: {warning}", markup=False)
    if report is not None:
        write_folder(report, figures)
        console.print(f"written to {report}", markup=False)
    if print_json:
        typer.echo(json.dumps(figures, allow_nan=False))
