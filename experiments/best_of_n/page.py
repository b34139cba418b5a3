"""The results page: every table in Markdown, and two plots.

figures of `analyse`  --write_page-->  results/README.md, results/*.png
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

COMMAND = "QUORUM_DATA=... python experiments/best_of_n/run.py --out runs/best_of_n"
_HEAD = f"""# Does the ensemble pick better answers?

`{COMMAND}` wrote this page (figures: `figures.json`, scores of all members: `scores/`).
What it means is in [docs/does-it-help.md](../../../docs/does-it-help.md).

Gold is the judge's preference for an answer over the reference's, 0 to 1, on alpaca_eval's 120 dev prompts of up to 56
systems' answers each, none of which was trained on or chosen by. Intervals are 95 %, over prompts and over draws of
members. *selected*: mode, beta and centring chosen draw by draw on 60 other prompts by `quorum calibrate`'s rule.
"""


def write_page(figures: dict[str, Any], folder: Path) -> None:
    """Write the page beside its plots."""
    entries = figures["ensembles"]
    last = len(figures["sizes"]) - 1
    parts = [_HEAD]
    parts += ["## The choice, tested once", _choices(figures["choices"])]
    parts += ["## Gold of the pick among all candidates", _baselines(figures, last), _gold(entries)]
    parts += ["## Modes and betas", "Gold of the pick minus the mean's, K = 5.", _modes(entries)]
    parts += [
        "## By number of candidates",
        "Gold of the pick, K = 5 (singles and merged of the nearest size).",
        _by_n(figures),
    ]
    parts += [
        "## Pairs",
        "Accuracy of the mean / ECE with tau fitted on other prompts, K = 5 or nearest.",
        _pairs(entries),
    ]
    parts += [
        "## What std knows",
        "On dev_pairs_lenbal: how members agree, AUROCs against the mean being wrong; then AUROCs for strange texts.",
        _std(entries),
    ]
    parts += [
        "## Cost",
        "Seconds are of three machines, some shared with other work: compare kinds within a factor of two.",
        _cost(entries),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("\n\n".join(parts) + "\n\n![gold by K and cost](gold.png)\n", encoding="utf-8")
    _plot(figures, folder / "gold.png")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _estimate(one: dict[str, Any]) -> str:
    if one["low"] is None:
        return f"{one['value']:.3f}"
    return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def _name(entry: dict[str, Any]) -> list[str]:
    return [str(entry["noise"]), entry["kind"], str(entry["size"])]


def _choices(choices: Sequence[dict[str, Any]]) -> str:
    head = [
        "noise %",
        "kind",
        "K",
        "gold on selection prompts",
        "gold on dev",
        "minus its members' alone",
        "without FuseChat and reference",
    ]
    return _table(
        head,
        (
            [
                *_name(one), f"{one['select']:.3f}", _estimate(one["gold"]["selected"]),
                _estimate(one["gold"]["selected_over_members"]), _estimate(one["gold_without"]["selected"]),
            ]
            for one in choices
        ),
    )  # fmt: skip


def _baselines(figures: dict[str, Any], last: int) -> str:
    rows = (
        [name, *(f"{figures['baselines'][pools][name][last]:.3f}" for pools in ("dev", "dev_without"))]
        for name in ("random", "longest", "oracle")
    )
    return _table(["baseline", "all candidates", "without FuseChat and reference"], rows)


def _gold(entries: Sequence[dict[str, Any]]) -> str:
    head = [
        "noise %",
        "kind",
        "K",
        "mean",
        "selected",
        "mean minus members alone",
        "selected minus members alone",
        "without…: mean",
        "chosen in draws",
    ]
    keys = ("mean", "selected", "mean_over_members", "selected_over_members")
    rows = []
    for entry in entries:
        gold = entry["gold"]
        chosen = ", ".join(
            f"{label} {count}" for label, count in sorted(gold["chosen"].items(), key=lambda one: -one[1])[:3]
        )
        rows.append(
            [
                *_name(entry), *(_estimate(gold[key]) for key in keys),
                _estimate(entry["gold_without"]["mean"]), chosen,
            ]
        )  # fmt: skip
    return _table(head, rows)


def _of_five(entries: Sequence[dict[str, Any]], kinds: Sequence[str]) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["kind"] in kinds and entry["size"] == 5]


def _modes(entries: Sequence[dict[str, Any]]) -> str:
    chosen = _of_five(entries, ("singles", "linear", "lora", "alone"))
    if not chosen:
        return "-"
    head = ["scoring", *(f"{entry['kind']}, noise {entry['noise']}" for entry in chosen)]
    labels = [label for label in chosen[0]["scorings"] if label != "mean"]
    return _table(
        head, ([label, *(_estimate(entry["scorings"][label]["over_mean"]) for entry in chosen)] for label in labels)
    )


def _by_n(figures: dict[str, Any]) -> str:
    head = ["noise %", "kind", "K", "scoring", *map(str, figures["sizes"])]
    base = figures["baselines"]["dev"]
    rows = [["", name, "", "", *(f"{value:.3f}" for value in base[name])] for name in base]
    for entry in figures["ensembles"]:
        if entry["size"] in (1, 5):
            rows += [
                [*_name(entry), label, *(f"{value:.3f}" for value in values[0])]
                for label, values in entry["curves"].items()
            ]
    return _table(head, rows)


def _pairs(entries: Sequence[dict[str, Any]]) -> str:
    chosen = [entry for entry in entries if entry["size"] == 5 or entry["kind"] == "single"]
    if not chosen:
        return "-"
    names = list(chosen[0]["pairs"])
    head = ["set", "pairs", "longer", *(f"{entry['kind']}, noise {entry['noise']}" for entry in chosen)]
    rows = []
    for name in names:
        first = chosen[0]["pairs"][name]
        cells = [
            f"{_estimate(one['accuracy'])} / {one['ece']:.3f}" for one in (entry["pairs"][name] for entry in chosen)
        ]
        rows.append([name, str(first["num_pairs"]), f"{first['longer']:.3f}", *cells])
    return _table(head, rows)


def _std(entries: Sequence[dict[str, Any]]) -> str:
    head = [
        "noise %",
        "kind",
        "K",
        "members' margins correlate",
        "margin-std",
        "std / abs. margin",
        "closeness to zero",
        "NullModel",
        "gpt4_gamed",
        "shuffled",
        "shuffled, by low mean",
    ]
    rows = []
    for entry in entries:
        if entry["texts"]:
            pairs, strange = entry["pairs"]["dev_pairs_lenbal"], entry["texts"]
            values = [
                pairs["correlation"],
                pairs["by_std"],
                pairs["by_z"],
                pairs["by_closeness"],
                *(strange[name]["std"] for name in ("NullModel", "gpt4_gamed", "shuffled")),
            ]
            rows.append([*_name(entry), *(f"{value:.3f}" for value in [*values, strange["shuffled"]["low_mean"]])])
    return _table(head, rows)


def _cost(entries: Sequence[dict[str, Any]]) -> str:
    head = ["noise %", "kind", "K", "gold (mean)", "training, processor s", "parameters", "MB", "passes of one model"]
    rows = []
    for entry in entries:
        cost = entry["cost"]
        seconds = "-" if cost["seconds"] is None else f"{cost['seconds']:.0f}"
        rows.append(
            [
                *_name(entry), f"{entry['gold']['mean']['value']:.3f}", seconds, f"{cost['parameters']:,.0f}",
                f"{cost['megabytes']:.1f}", f"{cost['passes']:.2f}",
            ]
        )  # fmt: skip
    return _table(head, rows)


def _plot(figures: dict[str, Any], target: Path) -> None:
    """Gold over K and over parameters, a line a kind; one panel a noise level."""
    mpl.use("Agg")
    noises = sorted({entry["noise"] for entry in figures["ensembles"]})
    figure, axes = plt.subplots(len(noises), 2, figsize=(11, 4 * len(noises)), layout="constrained", squeeze=False)
    for row, noise in zip(axes, noises, strict=True):
        for kind in dict.fromkeys(entry["kind"] for entry in figures["ensembles"]):
            chosen = [entry for entry in figures["ensembles"] if (entry["noise"], entry["kind"]) == (noise, kind)]
            gold = [entry["gold"]["mean"] for entry in chosen]
            errors = [
                [one["value"] - one["low"] if one["low"] is not None else 0 for one in gold],
                [one["high"] - one["value"] if one["high"] is not None else 0 for one in gold],
            ]
            for axis, places in zip(
                row, ([e["size"] for e in chosen], [e["cost"]["parameters"] for e in chosen]), strict=True
            ):
                axis.errorbar(
                    places, [one["value"] for one in gold], yerr=errors, fmt="o-", label=kind, capsize=3, ms=4
                )
        row[0].set(xlabel="members", ylabel="gold of the mean's pick", title=f"label noise {noise} %")
        row[1].set(xlabel="parameters beside the shared backbone", xscale="log", title=f"label noise {noise} %")
        for axis in row:
            axis.axhline(figures["baselines"]["dev"]["longest"][-1], color="grey", lw=0.8, ls="--")
            axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.savefig(target, dpi=110)
