"""What is in a bundle, for people and for programs.

    Bundle  --describe-->  JSON-ready dict
    Bundle  --print_summary-->  tables

Knows nothing of how the bundle was found or verified.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from quorum_model.bundle.card import metric_tables
from quorum_model.bundle.read import Bundle


def describe(bundle: Bundle) -> dict[str, Any]:
    """The manifest, with the version, and with each file's size in bytes beside its sha256."""
    described = bundle.manifest.model_dump(mode="json")
    files = {
        name: {"sha256": sha256, "size_bytes": (bundle.path / name).stat().st_size}
        for name, sha256 in bundle.manifest.files.items()
    }
    return {"version": bundle.version, "path": str(bundle.path), **described, "files": files}


def print_summary(bundle: Bundle, console: Console) -> None:
    """Print name, members with their calibration, files with their sizes, and metrics."""
    manifest = bundle.manifest
    beta = "" if manifest.default_beta is None else f", beta {manifest.default_beta:g}"
    facts = {
        "name": manifest.name,
        "version": bundle.version,
        "kind": f"{manifest.kind}, {len(manifest.members)} members",
        "backbone": manifest.backbone.source,
        "shared adapter": manifest.shared_adapter or "none",
        "pooling": manifest.pooling,
        "max length": f"{manifest.max_length} tokens, cut at: {manifest.truncation}",
        "prompt format": f"{manifest.prompt_format.origin}, fingerprint {manifest.prompt_format.fingerprint}",
        "default mode": f"{manifest.default_mode}{beta}",
        "pair temperature": f"{manifest.pair_temperature:.4g}",
        "licence": manifest.licence or "not stated",
    }
    _print(console, "", ["", ""], [[key, value] for key, value in facts.items()])
    _print(
        console,
        "members",
        ["member", "mean", "scale", "seed"],
        [[m.name, f"{m.calibration.mean:.4f}", f"{m.calibration.scale:.4f}", str(m.seed)] for m in manifest.members],
    )
    if manifest.training_data:
        _print(
            console,
            "training data",
            ["data", "pairs", "licence"],
            [[data.name, str(data.num_pairs), data.licence or "not stated"] for data in manifest.training_data],
        )
    for table in metric_tables(manifest.metrics, lists=False):
        _print(console, table.title, [name.replace("_", " ") for name in table.header], table.rows)
    sizes = {name: (bundle.path / name).stat().st_size for name in manifest.files}
    rows = [[name, f"{size:,}"] for name, size in sizes.items()]
    _print(console, "files", ["file", "bytes"], [*rows, ["all", f"{sum(sizes.values()):,}"]])
    console.print("Every file has the sha256 that manifest.json says.")


def _print(console: Console, title: str, header: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title or None, title_justify="left", show_header=any(header), box=None, pad_edge=False)
    for column in header:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text from a bundle is shown as it is: a bracket in a data set's name is no markup.
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console.print(table)
    console.print()
