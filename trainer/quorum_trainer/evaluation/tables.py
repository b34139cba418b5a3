"""A report as tables, for a terminal and for Markdown.

    report  --report_tables-->  [MetricTable]  --print_tables | to_markdown-->  text

Knows nothing of how figures are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quorum_model.bundle.card import MetricTable
from quorum_trainer.evaluation.cells import estimate_cell, number_cell
from quorum_trainer.evaluation.groups import ALL, is_whole
from quorum_trainer.evaluation.pool_tables import pool_tables
from quorum_trainer.evaluation.style_figures import AVERAGE
from quorum_trainer.evaluation.styles import LEVELS

Figures = dict[str, Any]


def report_tables(report: Figures, *, every_file: bool) -> list[MetricTable]:
    """Tables of what the report holds.

    Args:
        report: see `report`.
        every_file: all figures of each file; else those of all files together, and each file's accuracy.
    """
    tables: list[MetricTable] = []
    for group, figures in (report["pairs"] or {}).items():
        if group == ALL or (every_file and is_whole(group)):
            tables += _pair_tables(group, figures)
    if report["pairs"] and len(report["pairs"]) > 1:
        tables.append(_accuracy_by_group(report["pairs"]))
    if report["rm_bench"]:
        tables += _style_tables(report["rm_bench"])
    for group, figures in (report["best_of_n"] or {}).items():
        if group == ALL or every_file:
            tables += pool_tables(group, figures, report["bundle"]["default_scoring"])
    return tables


def print_tables(tables: list[MetricTable], console: Console) -> None:
    """On a terminal."""
    for one in tables:
        console.print(escape(one.title), style="bold")  # a table's own title would be wrapped to the table's width
        table = Table(box=None, pad_edge=False)
        for index, column in enumerate(one.header):
            table.add_column(escape(column), justify="left" if index == 0 else "right")
        for row in one.rows:
            table.add_row(*map(escape, row))
        console.print(table)
        console.print()


def to_markdown(report: Figures, plots: list[str]) -> str:
    """report.md: what was evaluated, every table, every plot.

    Args:
        report: see `report`.
        plots: their file names.
    """
    bundle, settings = report["bundle"], report["settings"]
    parts = [
        f"# {bundle['name']}@{bundle['version']}: evaluation",
        f"{bundle['kind']}, {bundle['num_members']} members, pair temperature {bundle['pair_temperature']:.4g}; "
        f"{settings['dtype']} on {settings['device']}. Brackets hold 95 % intervals by {INTERVALS}.",
        *(f"**Warning:** {warning}" for warning in report["warnings"]),
        _markdown(files_table(report)),
        *(_markdown(table) for table in report_tables(report, every_file=True)),
        *(f"![{name}]({name})" for name in plots),
    ]
    return "\n\n".join(parts) + "\n"


INTERVALS = "a bootstrap over prompts (seeded, 1,000 resamples)"


def files_table(report: Figures) -> MetricTable:
    """What was scored."""
    header = ["file", "kind", "rows", "ties left out", "texts", "truncated"]
    keys = ("label", "kind", "num_rows", "num_ties", "num_responses", "num_truncated")
    return MetricTable("files", header, [[str(file[key]) for key in keys] for file in report["files"]])


def _markdown(table: MetricTable) -> str:
    lines = [table.header, ["---", *["---:"] * (len(table.header) - 1)], *table.rows]
    cells = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return f"## {table.title}\n\n" + "\n".join(cells)


def _pair_tables(group: str, figures: Figures) -> Iterator[MetricTable]:
    where = f"{group}: {figures['num_pairs']} pairs of {figures['num_prompts']} prompts"
    accuracy = figures["accuracy"]
    named = accuracy["scorings"] | accuracy["members"]
    rows = [[name, estimate_cell(one)] for name, one in named.items()]
    rows.append(["members' average", f"{accuracy['members_average']:.3f}"])
    rows += [[name, estimate_cell(one)] for name, one in accuracy["baselines"].items()]
    yield MetricTable(f"pair accuracy, {where}", ["", "accuracy"], rows)
    yield _calibration_table(where, figures["calibration"])
    yield _uncertainty_table(where, figures["uncertainty"], accuracy["scorings"]["mean"]["value"])
    deciles = figures["uncertainty"]["margin_std"]["deciles"]
    if deciles:
        rows = [
            [str(index), str(one["num_pairs"]), f"{one['uncertainty_mean']:.3f}", f"{one['accuracy']:.3f}"]
            for index, one in enumerate(deciles, start=1)
        ]
        yield MetricTable(f"accuracy by margin std, {where}", ["decile", "pairs", "mean std", "accuracy"], rows)
    agreement = figures["agreement"]
    if agreement["matrix"]:
        names = agreement["members"]
        rows = [[name, *(f"{x:.3f}" for x in line)] for name, line in zip(names, agreement["matrix"], strict=True)]
        correlation = number_cell(agreement["mean_correlation"])
        yield MetricTable(f"share of pairs ordered alike (mean correlation {correlation}), {where}", ["", *names], rows)


def _calibration_table(where: str, figures: Figures) -> MetricTable:
    rows = []
    for name, what in (("bundle", "the bundle's tau"), ("cross_fitted", "tau fitted on other prompts")):
        one = figures[name]
        if one is not None:
            tau = one["tau"] if name == "bundle" else sum(one["taus"]) / len(one["taus"])
            rows.append([what, *(f"{number:.4f}" for number in (tau, one["ece"], one["brier"], one["nll"]))])
    # A probability of one half for every pair.
    rows.append(["random", "0.0000", "0.0000", "0.2500", "0.6931"])
    return MetricTable(f"calibration, {where}", ["", "tau", "ECE", "Brier", "NLL (nats)"], rows)


def _uncertainty_table(where: str, figures: Figures, accuracy: float) -> MetricTable:
    names = {
        "margin_std": "margin std",
        "score_std": "score std",
        "closeness": "closeness of the mean",
        "relative_std": "margin std / size of the mean",
    }
    rows = [
        [
            names[name],
            estimate_cell(one["auroc"]),
            estimate_cell(one["spearman"]),
            number_cell(one["selective"] and one["selective"]["area"]),
        ]
        for name, one in figures.items()
    ]
    rows.append(["random", "0.500", "0.000", f"{accuracy:.3f}"])
    title = f"uncertainty against being wrong, {where}"
    return MetricTable(title, ["", "AUROC", "Spearman", "selective accuracy, area"], rows)


def _accuracy_by_group(groups: dict[str, Figures]) -> MetricTable:
    rows = []
    for name, figures in groups.items():
        accuracy = figures["accuracy"]
        baselines = accuracy["baselines"]
        rows.append(
            [
                name,
                str(figures["num_pairs"]),
                estimate_cell(accuracy["scorings"]["mean"]),
                f"{accuracy['members_average']:.3f}",
                *(f"{baselines[baseline]['value']:.3f}" for baseline in ("longer", "shorter", "random")),
            ]
        )
    header = ["group", "pairs", "mean", "members' average", "longer", "shorter", "random"]
    return MetricTable("pair accuracy by group", header, rows)


def _style_tables(figures: Figures) -> Iterator[MetricTable]:
    prompts = sum(figures["num_prompts"].values())
    levels = [*reversed(LEVELS), "average"]
    rows = [
        [name, *(estimate_cell(one[AVERAGE][level]) for level in levels)]
        for kind in ("scorings", "members", "baselines")
        for name, one in figures[kind].items()
    ]
    yield MetricTable(f"RM-Bench, mean over domains, {prompts} prompts", ["", *levels], rows)
    mean = figures["scorings"]["mean"]
    rows = [
        [domain, str(number), *(estimate_cell(mean[domain][level]) for level in levels)]
        for domain, number in figures["num_prompts"].items()
    ]
    yield MetricTable("RM-Bench by domain, mode mean", ["domain", "prompts", *levels], rows)
    styles = figures["styles"]
    rows = [
        [f"chosen {style}", *map(number_cell, line)]
        for style, line in zip(styles, mean[AVERAGE]["matrix"], strict=True)
    ]
    yield MetricTable("RM-Bench matrix, mode mean", ["", *(f"rejected {style}" for style in styles)], rows)
