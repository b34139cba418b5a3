"""README.md of a bundle: a model card made from its manifest, ready for a model hub.

    Manifest, names of the head's parameters  --render_card-->  Markdown

Says nothing that the manifest does not; it cannot name the version, which hashes it. Knows no files.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quorum_model.bundle.manifest import Manifest
from quorum_model.bundle.snippet import render_snippet

_KINDS = {
    "single": "one reward model",
    "singles": "{} whole reward models",
    "linear": "{} heads on one backbone",
    "lora": "{} LoRA adapters, each with its head, on one backbone",
    "merged": "the average of an ensemble's members",
}


_PURPOSE = """\
A reward-model ensemble for Quorum: each (prompt, response) gets a score from every member, and their disagreement says
how far to trust it."""
_PURPOSE_OF_ONE = """\
A reward model for Quorum: each (prompt, response) gets a score. One member cannot disagree with itself: there is no
uncertainty here."""
_CALIBRATED = """\
Calibrated score = (raw - mean) / scale; both are measured on held-out pairs, and scale is the RMS of the
pair margins / √2."""
_UNCALIBRATED = """\
Calibrated score = (raw - mean) / scale. Not measured: no held-out pairs were scored, so mean, scale and pair
temperature say nothing about this ensemble."""
_USAGE = """\
## Use

In this folder:

```
pip install 'quorum-rm[server]'
quorum serve --bundle .
curl http://127.0.0.1:8000/score -d '{"inputs": [{"prompt": "What is the capital of France?", "response": "Paris."}]}'
```"""


@dataclass(frozen=True, slots=True)
class MetricTable:
    """Metrics as text. title: the metric's name. header, rows: of equal length."""

    title: str
    header: list[str]
    rows: list[list[str]]


def metric_tables(metrics: dict[str, Any], *, lists: bool = True) -> list[MetricTable]:
    """A manifest's metrics as tables: one row a group where a metric is a dict of dicts, else one row a value.

    Args:
        metrics: of the manifest.
        lists: whether columns of lists (a figure a member) are shown; they are wide.
    """
    tables = []
    single: list[list[str]] = []
    for name, value in metrics.items():
        if isinstance(value, dict) and value and all(isinstance(group, dict) for group in value.values()):
            columns = [
                column
                for column in dict.fromkeys(column for group in value.values() for column in group)
                if lists or not any(isinstance(group.get(column), list) for group in value.values())
            ]
            columns.sort(key=lambda column: not column.startswith("num_"))  # counts first
            rows = [[key, *(_show(group.get(column)) for column in columns)] for key, group in value.items()]
            tables.append(MetricTable(name, ["", *columns], rows))
        elif isinstance(value, dict):
            tables.append(MetricTable(name, ["", "value"], [[key, _show(inner)] for key, inner in value.items()]))
        else:
            single.append([name, _show(value)])
    return [*tables, MetricTable("other", ["", "value"], single)] if single else tables


def render_card(manifest: Manifest, head_names: Sequence[str]) -> str:
    """The card.

    Args:
        manifest: the bundle's; `files` is not used.
        head_names: names of a member's head parameters, as the sequence-classification model has them.
    """
    sections = [
        _front_matter(manifest),
        _introduction(manifest),
        _members(manifest),
        _training_data(manifest),
        *(
            f"## Metrics: {table.title}\n\n{_table(table.header, table.rows)}"
            for table in metric_tables(manifest.metrics)
        ),
        _usage(manifest),
        _without_quorum(manifest, head_names),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(manifest: Manifest) -> str:
    lines = []
    if manifest.licence is not None:
        lines.append(f"license: {json.dumps(manifest.licence.lower())}")
    lines.append("library_name: quorum-rm")
    if ":" not in manifest.backbone.source and manifest.backbone.source.count("/") == 1:  # a hub id
        lines.append(f"base_model: {json.dumps(manifest.backbone.source)}")
    lines += ["tags:", "- reward-model", "- ensemble", "- uncertainty", "- rlhf"]
    return "\n".join(["---", *lines, "---"])


def _introduction(manifest: Manifest) -> str:
    what = _KINDS[manifest.kind].format(len(manifest.members))
    backbone = manifest.backbone
    revision = f" at revision `{backbone.revision}`" if backbone.revision else ""
    shared = ", with a shared adapter merged into it" if manifest.shared_adapter else ""
    beta = "" if manifest.default_beta is None else f", beta {manifest.default_beta:g}"
    source = f"Backbone: `{backbone.source}`{revision}{shared}; weights sha256 `{backbone.weights_sha256}`."
    if manifest.kind == "singles":
        source = "Backbone: a whole one a member, in this bundle."
    facts = [
        f"Kind: `{manifest.kind}`, {what}.",
        source,
        f"Pooling: {manifest.pooling}; at most {manifest.max_length} tokens, cut at: {manifest.truncation}.",
        f"Prompt format: {manifest.prompt_format.origin}, fingerprint `{manifest.prompt_format.fingerprint}`.",
        f"Default mode: {manifest.default_mode}{beta}. Pair temperature: {manifest.pair_temperature:.4g}.",
    ]
    if manifest.parent_version is not None:
        facts.append(f"Made from version `{manifest.parent_version}`.")
    purpose = _PURPOSE if len(manifest.members) > 1 else _PURPOSE_OF_ONE
    return f"# {manifest.name}\n\n{purpose}\n\n" + "\n".join(f"- {fact}" for fact in facts)


def _members(manifest: Manifest) -> str:
    rows = [
        [member.name, str(member.seed), f"{member.calibration.mean:.4f}", f"{member.calibration.scale:.4f}"]
        for member in manifest.members
    ]
    # Measuring leaves its statistics; without them the figures are no measurement.
    note = _UNCALIBRATED if manifest.reference_stats is None else _CALIBRATED
    return f"## Members and calibration\n\n{note}\n\n" + _table(["member", "seed", "mean", "scale"], rows)


def _training_data(manifest: Manifest) -> str:
    if not manifest.training_data:
        return ""
    rows = [
        [data.name, str(data.num_pairs), data.licence or "not stated", f"`{data.sha256}`"]
        for data in manifest.training_data
    ]
    return "## Training data\n\n" + _table(["data", "pairs", "licence", "sha256"], rows)


def _usage(manifest: Manifest) -> str:
    scheme, _, package = manifest.backbone.source.partition(":")
    if scheme != "package":
        return _USAGE
    return _USAGE.replace("\nquorum serve", f" {shlex.quote(package)}\nquorum serve")


def _without_quorum(manifest: Manifest, head_names: Sequence[str]) -> str:
    snippet = render_snippet(manifest, head_names)
    if snippet is None:
        return ""
    return (
        "## The same score without Quorum\n\n"
        "The calibrated mean over members, `/score` with mode `mean`, for a text that needs no truncation:\n\n"
        f"```python\n{snippet}```"
    )


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return ", ".join(_show(inner) for inner in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_show(inner)}" for key, inner in value.items()) or "none"
    return "" if value is None else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text that stays one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")
