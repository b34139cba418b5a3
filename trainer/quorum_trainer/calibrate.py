"""`quorum calibrate`: a new version of a bundle, with its pair temperature, mode and beta fitted to data.

    bundle, pools with gold, pairs  --score, select_scoring, fit_pair_temperature-->  bundle of the same weights

tau by likelihood on pairs; mode and beta by the gold of the pick on pools, centred by group as POST /rank does. The new
bundle names its parent. Members' own means and scales stay what training measured.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from quorum_client.errors import InvalidRequest
from quorum_model.bundle.files import CARD_NAME
from quorum_model.bundle.manifest import Manifest
from quorum_model.bundle.read import Bundle
from quorum_model.bundle.write import write_bundle
from quorum_model.calibration import fit_pair_temperature
from quorum_trainer.data import hash_file
from quorum_trainer.evaluation.bootstrap import Estimate, cluster_ids
from quorum_trainer.evaluation.pair_figures import Pairs
from quorum_trainer.evaluation.reliability import cross_fitted_temperatures, reliability
from quorum_trainer.evaluation.rows import Row, label_files, read_gold_rows, read_pair_rows
from quorum_trainer.evaluation.scores import OpenBundle, ScoredRow, score_with_progress
from quorum_trainer.evaluation.scorings import beta_grid
from quorum_trainer.evaluation.selection import Selection, picked_gold, select_scoring

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class FittedTemperature:
    """tau: fitted on all pairs. nll_*: nats a pair, of the parent's tau and of taus fitted on other prompts."""

    tau: float
    num_pairs: int
    nll_before: float
    nll_cross_fitted: float | None


def calibrate(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, a hub id, or 'default'.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder of the new version; must not exist.")],
    data: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Pools with gold, or pairs as pools of two: for mode and beta.")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(dir_okay=False, help="Preference pairs: for the temperature.")] = None,
    n: Annotated[int | None, typer.Option("--n", min=2, help="Pick the best of n. Default: of the whole pool.")] = None,
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float64")] = "auto",
) -> None:
    """Fit a bundle's temperature, mode and beta to data, and write it as a new version.

    Another mode than the mean is taken only where it is surely better on prompts that it was not chosen by.
    """
    if out.exists() or not out.absolute().parent.is_dir():
        raise InvalidRequest(f"out: {out} exists already" if out.exists() else f"out: no such folder: {out.parent}")
    pool_rows, pair_rows = read_inputs(data, pairs, n)
    opened = OpenBundle.open(bundle, device=device, dtype=dtype)
    if len(opened.bundle.manifest.members) == 1:
        if not pair_rows:
            raise InvalidRequest("pairs: with one member every mode is the mean; give pairs to fit the temperature on")
        pool_rows = []
    scored = score_with_progress(opened, [*pool_rows, *pair_rows], console)
    selection = select_on(scored[: len(pool_rows)], n) if pool_rows else None
    fitted = fit_on(scored[len(pool_rows) :], opened.bundle.manifest.pair_temperature) if pair_rows else None
    figures = describe(selection, fitted, len(pool_rows), n) | {
        f"{name}_sha256": hash_file(path) for name, path in (("data", data), ("pairs", pairs)) if path is not None
    }
    written = write_calibrated(out, opened.bundle, selection, fitted, figures)
    summary = {"bundle": str(out), "name": written.manifest.name, "version": written.version, **figures}
    _print(written, summary)
    if print_json:
        typer.echo(json.dumps(summary | ({"gold_by_scoring": selection.table} if selection else {}), allow_nan=False))


def read_inputs(data: Path | None, pairs: Path | None, n: int | None) -> tuple[list[Row], list[Row]]:
    """Rows to choose a mode by, and rows to fit the temperature on.

    Raises:
        DataError: a file or line that cannot be used.
        InvalidRequest: neither file is given; or pools smaller than n.
    """
    if data is None and pairs is None:
        raise InvalidRequest("nothing to calibrate on: give --data, --pairs or both")
    if data is None and n is not None:
        raise InvalidRequest("n: goes with --data")
    # The same file may be given as both.
    pool_rows = read_gold_rows(data, label_files([data])[0]) if data is not None else []
    pair_rows = read_pair_rows(pairs, label_files([pairs])[0])[0] if pairs is not None else []
    for row in pool_rows:
        if n is not None and len(row.gold) < n:
            raise InvalidRequest(f"n: {row.file}, line {row.line} has {len(row.gold)} candidates, fewer than {n}")
    return pool_rows, pair_rows


def select_on(scored: list[ScoredRow], n: int | None) -> Selection:
    """Choose mode and beta on scored pools, of at least two members."""
    scorings = beta_grid()
    values = picked_gold(scorings, [(one.members, np.array(one.row.gold)) for one in scored], n)
    return select_scoring(scorings, values, cluster_ids([one.row.prompt_key for one in scored]))


def fit_on(scored: list[ScoredRow], tau_before: float) -> FittedTemperature:
    """Fit the temperature on scored pairs, and say what that is worth on prompts it is not fitted on."""
    pairs = Pairs.of(scored)
    margins, clusters = pairs.margins, cluster_ids(pairs.keys)
    crossed = reliability(margins, cross_fitted_temperatures(margins, clusters)).nll if clusters.max() > 0 else None
    return FittedTemperature(
        tau=fit_pair_temperature(margins),
        num_pairs=len(scored),
        nll_before=reliability(margins, tau_before).nll,
        nll_cross_fitted=crossed,
    )


def describe(
    selection: Selection | None, fitted: FittedTemperature | None, num_pools: int, n: int | None
) -> dict[str, Any]:
    """metrics["calibration"] of the new manifest: flat, what was chosen and the figures behind it."""
    figures: dict[str, Any] = {}
    if selection is not None:
        figures |= {
            "mode": selection.chosen.mode,
            "beta": selection.chosen.beta,
            "reason": selection.reason,
            "best_on_all": replace(selection.best, center="none").label,
            "num_pools": num_pools,
            "n": "full" if n is None else n,
            **_flat("gold_cross_validated", selection.cross_validated),
            **_flat("gold_of_mean", selection.mean_gold),
            **_flat("advantage", selection.advantage),
            "luck": selection.luck,
        }
    if fitted is not None:
        figures |= {
            "pair_temperature": fitted.tau,
            "num_pairs": fitted.num_pairs,
            "nll_before": fitted.nll_before,
            "nll_cross_fitted": fitted.nll_cross_fitted,
        }
    return figures


def write_calibrated(
    target: Path,
    parent: Bundle,
    selection: Selection | None,
    fitted: FittedTemperature | None,
    figures: dict[str, Any],
) -> Bundle:
    """The parent's files under a new manifest.

    Args:
        target: must not exist; its parent must.
        parent: verified.
        selection: its chosen mode and beta become the defaults; None keeps the parent's.
        fitted: its tau becomes the bundle's; None keeps the parent's.
        figures: for metrics["calibration"].

    Raises:
        BundleError: `target` cannot be written; nothing is left behind.
    """
    changes: dict[str, Any] = {
        "parent_version": parent.version,
        "metrics": {**parent.manifest.metrics, "calibration": figures},
    }
    if selection is not None:
        changes |= {"default_mode": selection.chosen.mode, "default_beta": selection.chosen.beta}
    if fitted is not None:
        changes["pair_temperature"] = fitted.tau
    manifest: Manifest = parent.manifest.model_copy(update=changes)
    return write_bundle(target, manifest, lambda root: carry_over(parent, root))


def carry_over(parent: Bundle, root: Path) -> None:
    """All files of a bundle but its card and manifest; weights are hard-linked where that is safe, else copied.

    Safe is a file of this user's own that is as readable as a bundle's files are made: `write_bundle` sets that, and a
    link shares it with the parent.
    """
    for relative in parent.manifest.files:
        if relative == CARD_NAME:
            continue
        source, target = (parent.path / relative).resolve(), root / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        mine, theirs = target.stat(), source.stat()
        if source.suffix == ".safetensors" and (mine.st_uid, mine.st_mode) == (theirs.st_uid, theirs.st_mode):
            target.unlink()
            with suppress(OSError):  # another file system, or one without links
                os.link(source, target)
                continue
        shutil.copyfile(source, target)


def _flat(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _print(written: Bundle, summary: dict[str, Any]) -> None:
    manifest = written.manifest
    beta = "" if manifest.default_beta is None else f", beta {manifest.default_beta:g}"
    console.print(f"default mode {manifest.default_mode}{beta}; pair temperature {manifest.pair_temperature:.4g}")
    for name, value in summary.items():
        if name not in ("bundle", "name", "version"):
            console.print(f"  {name}: {value:.4f}" if isinstance(value, float) else f"  {name}: {value}", markup=False)
    console.print(f"{manifest.name}@{written.version} written to {summary['bundle']}", markup=False)
