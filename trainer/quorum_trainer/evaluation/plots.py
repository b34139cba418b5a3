"""Plots of a report, as PNG files.

    report  --draw_plots-->  reliability.png, selective_accuracy.png, std_and_error.png, agreement.png, and pool_plots'

All pairs of all files together. Draws on figures of its own and leaves matplotlib's global state alone. Knows nothing
of how figures are computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quorum_trainer.evaluation.groups import ALL
from quorum_trainer.evaluation.palette import BLUE, GREEN, GREY, ORANGE, PINK
from quorum_trainer.evaluation.pool_plots import draw_pools

Figures = dict[str, Any]

_MEASURES = {
    "margin_std": ("std of the margin", BLUE),
    "score_std": ("std of the scores", ORANGE),
    "closeness": ("closeness of the mean margin to 0", GREEN),
    "relative_std": ("std of the margin / its size", PINK),
}


def draw_plots(report: Figures, folder: Path) -> list[str]:
    """Draw what the report has figures for.

    Args:
        report: see `report`.
        folder: an existing one.

    Returns:
        Names of the files written.
    """
    bundle = report["bundle"]
    name = f"{bundle['name']}@{bundle['version']}"
    drawn: dict[str, Figure] = {}
    if report["pairs"]:
        files = ", ".join(file["label"] for file in report["files"] if file["kind"] == "pairs")
        figures = report["pairs"][ALL]
        title = f"{name}, {figures['num_pairs']} pairs: {files if len(files) < 60 else 'all files'}"
        drawn["reliability.png"] = _reliability(figures["calibration"], title)
        drawn["selective_accuracy.png"] = _selective(figures["uncertainty"], title)
        if figures["uncertainty"]["margin_std"]["deciles"]:
            drawn["std_and_error.png"] = _std_and_error(figures, title)
        if figures["agreement"]["matrix"]:
            drawn["agreement.png"] = _agreement(figures["agreement"], title)
    if report["best_of_n"]:
        drawn |= draw_pools(report["best_of_n"], name, bundle["default_scoring"])
    for file, figure in drawn.items():
        figure.savefig(folder / file, dpi=120)
    return list(drawn)


def _figure(title: str, size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _reliability(figures: Figures, title: str) -> Figure:
    """Predicted against observed share, with the binomial standard error, over how many pairs each bin holds."""
    figure = Figure(figsize=(5.4, 6.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
    for kind, colour, marker, shift in (("bundle", BLUE, "o", -0.5), ("cross_fitted", ORANGE, "s", 0.5)):
        one = figures[kind]
        if one is None:
            continue
        what = f"bundle's τ = {one['tau']:.3g}" if kind == "bundle" else "τ fitted on other prompts"
        predicted, observed, counts = (np.array(one["bins"][key]) for key in ("predicted", "observed", "counts"))
        # Of predicted, not of observed: that would be 0 where a bin of two pairs has seen one outcome only.
        error = np.sqrt(predicted * (1 - predicted) / counts)
        axes.errorbar(
            predicted,
            observed,
            yerr=error,
            color=colour,
            marker=marker,
            linestyle="none",
            capsize=2,
            label=f"{what}, ECE {one['ece']:.3f}",
        )
        below.bar(predicted + shift * 0.016, counts, width=0.016, color=colour)
    axes.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="observed share of wins (± 1 standard error)")
    below.set(xlabel="predicted probability of winning (each pair and its flip)", ylabel="count in bin")
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower center")
    for one in (axes, below):
        one.spines[["top", "right"]].set_visible(False)
    return figure


def _selective(figures: Figures, title: str) -> Figure:
    """Accuracy where the most uncertain pairs are left undecided."""
    figure, axes = _figure(title, (6.4, 4.4))
    for name, (what, colour) in _MEASURES.items():
        curve = figures[name]["selective"]
        if curve is not None:
            label = f"{what}, area {curve['area']:.3f}"
            axes.plot(curve["coverage"], curve["accuracy"], color=colour, marker=".", label=label)
    overall = figures["closeness"]["selective"]["accuracy"][-1]
    axes.axhline(overall, color=GREY, linestyle="--", linewidth=1, label=f"random order, {overall:.3f}")
    axes.set(xlim=(0, 1.02), xlabel="coverage: share of pairs decided, the most certain first", ylabel="pair accuracy")
    axes.legend(fontsize=8, frameon=False)
    return figure


def _std_and_error(figures: Figures, title: str) -> Figure:
    """Error by decile of the margin's std."""
    figure, axes = _figure(title, (6.4, 4.4))
    deciles = figures["uncertainty"]["margin_std"]["deciles"]
    places = np.arange(1, len(deciles) + 1)
    axes.errorbar(
        places,
        [1 - one["accuracy"] for one in deciles],
        yerr=[one["standard_error"] or 0.0 for one in deciles],
        color=BLUE,
        marker="o",
        capsize=3,
        label="error ± 1 standard error",
    )
    overall = 1 - figures["accuracy"]["scorings"]["mean"]["value"]
    axes.axhline(overall, color=GREY, linestyle="--", linewidth=1, label=f"all pairs, {overall:.3f}")
    axes.set_xticks(places, [f"{index}\n{one['uncertainty_mean']:.3f}" for index, one in enumerate(deciles, start=1)])
    axes.set(
        xlabel="decile of the margin's std over members, below it the mean std (calibrated units)",
        ylabel="share of pairs that the mean orders wrongly",
    )
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def _agreement(figures: Figures, title: str) -> Figure:
    """Share of pairs that two members order alike."""
    names, matrix = figures["members"], np.array(figures["matrix"])
    side = max(4.4, 0.62 * len(names) + 1.6)
    figure, axes = _figure(title, (side + 0.6, side))
    image = axes.imshow(matrix, vmin=0.5, vmax=1.0, cmap="Blues")
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    if len(names) <= 12:
        for (row, column), value in np.ndenumerate(matrix):
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.8 else "black", size=8
            )
    correlation = figures["mean_correlation"]
    suffix = "" if correlation is None else f" (mean correlation of margins {correlation:.3f})"
    axes.set(xlabel=f"member{suffix}", ylabel="member")
    figure.colorbar(image, ax=axes, label="share of pairs ordered alike", shrink=0.85)
    return figure
