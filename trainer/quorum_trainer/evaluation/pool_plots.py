"""Plots of Best-of-N: gold and length of the pick against n, and for one policy gold and reward against sqrt(KL).

    figures by group  --draw_pools-->  {file name: Figure}

A pair of panels a file, and one for all files together. Knows nothing of how figures are computed.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quorum_trainer.evaluation.groups import ALL
from quorum_trainer.evaluation.palette import COLOURS, GREY

Figures = dict[str, Any]

_BASELINES = {"random": "--", "longest": "-.", "oracle": ":"}


def draw_pools(by_group: Figures, bundle: str, default: str) -> dict[str, Figure]:
    """Draw every group that has curves.

    Args:
        by_group: see `report`.
        bundle: name and version.
        default: label of the bundle's own scoring; its band is drawn, as the mean's is.
    """
    drawn: dict[str, Figure] = {}
    for group, figures in by_group.items():
        if figures["curves"] is None:
            continue
        suffix = "" if group == ALL else "_" + re.sub(r"[^\w.-]+", "_", group)
        title = f"{bundle}, {group}: {figures['num_pools']} pools"
        drawn[f"best_of_n{suffix}.png"] = _against_n(figures, title, default)
        if figures["policy"] is not None:
            drawn[f"overoptimization{suffix}.png"] = _against_kl(figures, title, default)
    return drawn


def _style(name: str, figures: Figures) -> dict[str, Any]:
    """A colour a mode and beta; centred by group in dots; baselines grey."""
    if name in _BASELINES:
        return {"color": GREY, "linestyle": _BASELINES[name], "linewidth": 1}
    bases = list(dict.fromkeys(label.partition("/")[0] for label in figures["scorings"]))
    colour = COLOURS[bases.index(name.partition("/")[0]) % len(COLOURS)]
    return {"color": colour, "linestyle": ":" if "/" in name else "-"}


def _shown(figures: Figures) -> dict[str, Figures]:
    curves: Figures = figures["curves"]
    shown: Figures = curves["scorings"]
    return shown | {name: curves["baselines"][name] for name in _BASELINES}


def _band(axes: Axes, x: Any, curve: Figures, colour: str) -> None:
    if curve["low"] is not None:
        axes.fill_between(x, curve["low"], curve["high"], color=colour, alpha=0.12, linewidth=0)


def _against_n(figures: Figures, title: str, default: str) -> Figure:
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle(f"{title}; bands are 95 % intervals over prompts", fontsize=9)
    panels = figure.subplots(1, 2)
    for axes, value, what in zip(
        panels, ("gold", "chars"), ("mean gold of the pick", "mean length of the pick (characters)"), strict=True
    ):
        for name, curve in _shown(figures).items():
            style = _style(name, figures)
            axes.plot(curve["n"], curve[value]["value"], label=name, **style)
            if name in ("mean", default, f"{default}/group", *_BASELINES):
                _band(axes, curve["n"], curve[value], style["color"])
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set(xlabel="n, candidates to pick from", ylabel=what)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8, frameon=False, ncols=2)
    return figure


def _against_kl(figures: Figures, title: str, default: str) -> Figure:
    """What the reward says it gained, what gold gained, and Gao's fit to gold."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle(title, fontsize=9)
    panels = figure.subplots(1, 2)
    policy = figures["policy"]
    root_kl = np.sqrt(policy["kl"])
    for name, curve in _shown(figures).items():
        style, d = _style(name, figures), root_kl[np.array(curve["n"]) - 1]
        is_own = name in ("mean", default, f"{default}/group")
        panels[0].plot(d, curve["gold"]["value"], label=name, **style)
        fit = policy["fits"]["baselines" if name in _BASELINES else "scorings"][name]
        if is_own and fit is not None:
            _band(panels[0], d, curve["gold"], style["color"])
            fitted = fit["r0"] + root_kl * (fit["alpha"]["value"] - fit["beta"]["value"] * root_kl)
            label = "fit: R(0) + d (alpha - beta d)" if name == "mean" else None
            panels[0].plot(root_kl, fitted, color=style["color"], linestyle="--", linewidth=0.8, label=label)
        if "reward" in curve:
            gained = np.array(curve["reward"]["value"]) - curve["reward"]["value"][0]
            panels[1].plot(d, gained, label=name, **style)
    panels[0].set(xlabel="d = √KL (√nats)", ylabel="mean gold of the pick")
    panels[1].set(xlabel="d = √KL (√nats)", ylabel="gain in the scoring's own reward (calibrated units)")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, ncols=2)
    return figure
