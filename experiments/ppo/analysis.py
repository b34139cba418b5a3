"""From logs to answers: where each run's gold peaks, what the proxy claims there, what the std says; Best-of-N beside.

    results/*.jsonl  --analyse-->  figures  --write_page-->  figures.json, README.md, curves.png

Steps are averaged over windows that hold every prompt once: one window's mean is over the same prompts as the next's.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from plan import MODES, NOISES, SEEDS, SMALL, proxy_name, runs

from quorum_client.modes import aggregate
from quorum_trainer.evaluation.best_of import FloatArray, best_of_n, sizes_below
from quorum_trainer.evaluation.palette import COLOURS

Figures = dict[str, Any]
_SERIES = ("reward/score", "reward/gold", "uncertainty/std", "kl/reference")
_SIZES = sizes_below(SMALL.best_of)
_EQUAL_KL = (4, 16, 32)
"""The n of Best-of-N at whose KL the policies are compared with it."""


def analyse(results: Path) -> Figures:
    """All figures of the runs whose logs are there; means and standard errors over seeds."""
    window = SMALL.prompts // SMALL.step_prompts
    by_setting: dict[tuple[str, ...], list[Figures]] = defaultdict(list)
    for run in (run for seed in SEEDS for run in runs(seed)):
        path = results / f"{run.name}.jsonl"
        if path.exists():
            lines = _read_lines(path)
            key = (run.kind, str(run.noise), run.mode, f"{run.coefficient:g}")
            by_setting[key].append(_of_run(lines, min(window, len(lines))))
    settings = [
        {"kind": key[0], "noise": int(key[1]), "mode": key[2], "coefficient": float(key[3]), **_over_seeds(own)}
        for key, own in by_setting.items()
    ]
    return {"settings": settings, "best_of_n": _best_of_n(results)}


def _of_run(lines: list[Figures], window: int) -> Figures:
    kernel = np.ones(window) / window
    curves = {
        name: np.convolve([line.get(name, math.nan) for line in lines], kernel, mode="valid").tolist()
        for name in _SERIES
    }
    gold = curves["reward/gold"]
    best = int(np.nanargmax(gold))
    reached = np.maximum.accumulate(curves["kl/reference"])
    return {
        "curves": curves,
        "gold_at_kl": [float(np.interp(kl_of(n), reached, gold, right=math.nan)) for n in _EQUAL_KL],
        "gold_first": gold[0], "gold_peak": gold[best], "gold_last": gold[-1],
        "kl_peak": curves["kl/reference"][best], "kl_last": curves["kl/reference"][-1],
        "proxy_gain": curves["reward/score"][-1] - curves["reward/score"][0],
        "std_rise": curves["uncertainty/std"][-1] / curves["uncertainty/std"][0] - 1,
        "alarms": sum(line.get("alarm/overoptimization", 0.0) for line in lines),
    }  # fmt: skip


def kl_of(n: int) -> float:
    """Of the best of n from the policy, in nats: log n - (n - 1) / n (Nakano et al., arXiv 2112.09332)."""
    return math.log(n) - (n - 1) / n


def _over_seeds(own: list[Figures]) -> Figures:
    names = [name for name in own[0] if name not in ("curves", "gold_at_kl")]
    values = {name: [one[name] for one in own] for name in names}
    return {
        "seeds": len(own),
        **{name: float(np.mean(values[name])) for name in names},
        "gold_last_error": float(np.std(values["gold_last"], ddof=1) / math.sqrt(len(own))) if len(own) > 1 else None,
        "gold_at_kl": np.mean([one["gold_at_kl"] for one in own], axis=0).tolist(),
        "curves": {name: np.mean([one["curves"][name] for one in own], axis=0).tolist() for name in _SERIES},
    }


def _best_of_n(results: Path) -> list[Figures]:
    """Expected gold of the pick, and the KL, for every proxy and mode: mean over prompts and seeds."""
    pools = {seed: _read_lines(results / f"candidates-{seed}.jsonl") for seed in SEEDS}
    figures = []
    for noise in NOISES:
        for kind, modes in MODES.items():
            for mode, beta in modes:
                curves = [
                    curve
                    for seed, own in pools.items()
                    for pool in own
                    if (curve := _picks(pool, proxy_name(kind, noise, seed), mode, beta)) is not None
                ]
                if curves:
                    figures.append(
                        {"kind": kind, "noise": noise, "mode": mode, "pools": len(curves), "n": list(_SIZES),
                         "kl": [kl_of(n) for n in _SIZES], "gold": np.mean(curves, axis=0).tolist()}
                    )  # fmt: skip
    return figures


def _picks(pool: Figures, proxy: str, mode: str, beta: float | None) -> FloatArray | None:
    """Expected gold of the best of n, (len(_SIZES),); None where too few candidates have a score."""
    kept = [i for i, members in enumerate(pool["proxies"][proxy]) if members is not None]
    if len(kept) < max(_SIZES):
        return None
    members = np.array([pool["proxies"][proxy][i] for i in kept]).T
    gold = np.array([pool["gold"][i] for i in kept])
    return best_of_n(np.asarray(aggregate(members, mode, beta)), gold, _SIZES)  # type: ignore[arg-type]


def _read_lines(path: Path) -> list[Figures]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _plain(value: Any) -> Any:
    """What JSON has: null where a figure is none, such as the std of a single member."""
    if isinstance(value, dict):
        return {name: _plain(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_plain(own) for own in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_page(figures: Figures, folder: Path) -> None:
    """figures.json, curves.png and README.md."""
    (folder / "figures.json").write_text(json.dumps(_plain(figures), indent=1) + "\n", encoding="utf-8")
    _draw(figures, folder / "curves.png")
    columns = (
        "proxy", "noise", "mode", "KL cost", "seeds", "gold, first", "peak", "at KL", "last", "±", "KL, last",
        "proxy gained", "std rose", "alarms",
    )  # fmt: skip
    lines = [
        "# PPO against proxies of a gold model",
        "",
        "Made by `python experiments/ppo/run.py` (see there). Gold and proxy in units of calibrated scores;",
        "KL in nats a completion; windows of all prompts; ± is one standard error over seeds.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    order = ("noise", "coefficient", "kind", "mode")
    for own in sorted(figures["settings"], key=lambda one: [one[name] for name in order]):
        error = own["gold_last_error"]
        cells = [
            own["kind"], f"{own['noise']} %", own["mode"], f"{own['coefficient']:g}", str(own["seeds"]),
            f"{own['gold_first']:.3f}", f"{own['gold_peak']:.3f}", f"{own['kl_peak']:.1f}", f"{own['gold_last']:.3f}",
            "-" if error is None else f"{error:.3f}", f"{own['kl_last']:.1f}", f"{own['proxy_gain']:.3f}",
            "-" if math.isnan(own["std_rise"]) else f"{own['std_rise']:.0%}", f"{own['alarms']:.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    lines += _equal_kl(figures)
    lines += ["", "![Gold and proxy over the root of the KL](curves.png)", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _equal_kl(figures: Figures) -> list[str]:
    """Gold of the best of n, and of PPO without a KL cost when its KL first is that of the best of n."""
    policies = {
        (own["kind"], own["noise"], own["mode"]): own["gold_at_kl"]
        for own in figures["settings"]
        if own["coefficient"] == 0.0
    }
    heads = [cell for n in _EQUAL_KL for cell in (f"best of {n}", f"PPO at KL {kl_of(n):.1f}")]
    lines = ["", "## At equal KL", "", "The gold; `-`: PPO never got so far.", ""]
    lines += ["| proxy | noise | mode | policy | " + " | ".join(heads) + " |", "|" + "---|" * (4 + len(heads))]
    for own in figures["best_of_n"]:
        key = own["kind"], own["noise"], own["mode"]
        if key not in policies:
            continue
        picked = [own["gold"][own["n"].index(n)] for n in _EQUAL_KL]
        pairs = [cell for pair in zip(picked, policies[key], strict=True) for cell in pair]
        cells = [own["kind"], f"{own['noise']} %", own["mode"], f"{own['gold'][0]:.3f}"]
        cells += ["-" if math.isnan(gold) else f"{gold:.3f}" for gold in pairs]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _draw(figures: Figures, path: Path) -> None:
    figure = Figure(figsize=(11, 4.5 * len(NOISES)), layout="constrained")
    rows = figure.subplots(len(NOISES), 2, squeeze=False)
    for row, noise in zip(rows, NOISES, strict=True):
        for axes, name in zip(row, ("reward/gold", "reward/score"), strict=True):
            chosen = [own for own in figures["settings"] if own["noise"] == noise and own["coefficient"] == 0.0]
            for colour, own in zip(COLOURS, chosen, strict=False):
                root = np.sqrt(np.maximum(own["curves"]["kl/reference"], 0))
                axes.plot(root, own["curves"][name], color=colour, label=f"{own['kind']} {own['mode']}", linewidth=1)
            if name == "reward/gold":
                for colour, own in zip(COLOURS, [o for o in figures["best_of_n"] if o["noise"] == noise], strict=False):
                    axes.plot(np.sqrt(own["kl"]), own["gold"], color=colour, linestyle=":", linewidth=1)
            axes.set_xlabel("√KL")
            axes.set_title(
                f"{name.partition('/')[2]}, label noise {noise} %, KL cost 0 (dotted: Best-of-N)", fontsize=9
            )
            axes.spines[["top", "right"]].set_visible(False)
            if chosen:
                axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
