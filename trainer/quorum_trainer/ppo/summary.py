"""A run that is over: its figures in a few numbers, and drawn.

log.jsonl's lines  --summarise-->  {name: number};  --draw_curves-->  curves.png
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quorum_trainer.evaluation.palette import BLUE, GREEN, GREY, ORANGE, PINK

Lines = Sequence[dict[str, Any]]

_SHARE = 4
"""First and last quarter of the steps are compared."""
_COMPARED = ("reward/score", "reward/gold", "uncertainty/std", "kl/reference", "length/mean")
_PANELS = (
    ("reward", (("reward/score", "score (optimised)", BLUE), ("reward/gold", "gold", GREEN))),
    ("KL, nats a completion", (("kl/reference", "KL", ORANGE),)),
    ("std over members", (("uncertainty/std", "std", PINK), ("uncertainty/mean_minus_score", "mean - score", GREY))),
    ("tokens a completion", (("length/mean", "length", GREY),)),
)


def summarise(lines: Lines) -> dict[str, Any]:
    """First and last quarter of the steps by their means, with the standard error of the difference, and times.

    Args:
        lines: of the log; at least one.

    Returns:
        steps; versions; for each figure {first, last, difference, standard_error}; seconds by phase in all.
    """
    count = max(1, len(lines) // _SHARE)
    figures: dict[str, Any] = {"steps": len(lines)}
    figures["versions"] = sorted({version for line in lines for version in line["versions"]})
    for name in _COMPARED:
        first, last = ([line[name] for line in part if name in line] for part in (lines[:count], lines[-count:]))
        if first and last:
            figures[name] = {
                "first": statistics.fmean(first),
                "last": statistics.fmean(last),
                "difference": statistics.fmean(last) - statistics.fmean(first),
                "standard_error": _error_of_difference(first, last),
            }
    names = sorted({name for line in lines for name in line if name.startswith("time/")})
    figures["seconds"] = {name[5:]: sum(line.get(name, 0.0) for line in lines) for name in names}
    figures["alarms"] = [line["step"] for line in lines if line.get("alarm/overoptimization")]
    return figures


def draw_curves(lines: Lines, title: str, path: Path) -> None:
    """Rewards, KL, uncertainty and length over the steps, and rewards over the root of the KL (Gao et al. 2022)."""
    figure = Figure(figsize=(9, 9), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(3, 2).flatten()
    for place, (label, curves) in zip(axes, _PANELS, strict=False):
        for name, legend, colour in curves:
            points = [(line["step"] + 1, line[name]) for line in lines if name in line]
            if points:
                place.plot(*zip(*points, strict=True), color=colour, label=legend, linewidth=1.2)
        _finish(place, "step", label)
    alarms = [line["step"] + 1 for line in lines if line.get("alarm/overoptimization")]
    for step in alarms:
        axes[2].axvline(step, color=ORANGE, linewidth=0.5)
    for before, line in itertools.pairwise(lines):
        if line["versions"] != before["versions"]:
            axes[0].axvline(line["step"] + 1, color=GREY, linestyle=":", linewidth=1)
    for name, legend, colour in _PANELS[0][1]:
        points = [(math.sqrt(max(line["kl/reference"], 0.0)), line[name]) for line in lines if name in line]
        if points:
            axes[4].scatter(*zip(*points, strict=True), color=colour, label=legend, s=8)
    _finish(axes[4], "√KL", "reward")
    _draw_times(axes[5], lines)
    figure.savefig(path, dpi=120)


def _draw_times(axes: Axes, lines: Lines) -> None:
    names = ("waited", "look_back", "learn")
    seconds = [sum(line[f"time/{name}"] for line in lines) / len(lines) for name in names]
    axes.barh(["waiting for rollouts", "looking back", "learning"], seconds, color=[BLUE, GREY, GREEN])
    _finish(axes, "seconds a step", "", has_legend=False)


def _finish(axes: Axes, x: str, y: str, *, has_legend: bool = True) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    if has_legend and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def _error_of_difference(first: Sequence[float], last: Sequence[float]) -> float | None:
    if len(first) < 2 or len(last) < 2:
        return None
    return math.sqrt(sum(statistics.variance(own) / len(own) for own in (first, last)))
