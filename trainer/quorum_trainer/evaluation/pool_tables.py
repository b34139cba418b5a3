"""Best-of-N figures as tables: gold and length of the pick by n, and for one policy its KL, reward and Gao's fit.

    figures of a group  --pool_tables-->  [MetricTable]

Knows nothing of how figures are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quorum_model.bundle.card import MetricTable
from quorum_trainer.evaluation.cells import estimate_cell, number_cell

Figures = dict[str, Any]

_KINDS = ("scorings", "members", "baselines")


def pool_tables(group: str, figures: Figures, default: str) -> Iterator[MetricTable]:
    """Tables of a group.

    Args:
        group: its name.
        figures: see `report`.
        default: label of the bundle's own scoring, which is marked.
    """
    sizes = list(figures["baselines"]["random"])
    header = ["", *(f"n={size}" for size in sizes)]
    sizes_of = dict.fromkeys((str(figures["smallest_pool"]), str(figures["largest_pool"])))
    where = f"{group}: {figures['num_pools']} pools of {' to '.join(sizes_of)} candidates"
    rows = [
        [_mark(name, default), *(estimate_cell(by_size.get(size)) for size in sizes)]
        for kind in _KINDS
        for name, by_size in figures[kind].items()
    ]
    yield MetricTable(f"gold of the best of n, {where}", header, rows)
    rows = [
        [_mark(name, default), *(estimate_cell(by_size.get(size, {}).get("chars"), digits=0) for size in sizes)]
        for kind in _KINDS
        for name, by_size in figures[kind].items()
    ]
    yield MetricTable(f"length in characters of the best of n, {where}", header, rows)
    if figures["policy"] is not None:
        yield _reward_table(figures, where, default)
        yield _fit_table(figures, where, default)


def _mark(name: str, default: str) -> str:
    return f"{name} (default)" if name.partition("/")[0] == default else name


def _reward_table(figures: Figures, where: str, default: str) -> MetricTable:
    """The picks' own rewards, which rise with n whatever gold does."""
    policy = figures["policy"]
    sizes = [int(size) for size in figures["baselines"]["random"] if size.isdigit()]
    sizes = [size for size in sizes if size in policy["n"]]
    rows = [["KL (nats)", *(f"{policy['kl'][size - 1]:.3f}" for size in sizes)]]
    for kind in _KINDS:
        for name, curve in figures["curves"][kind].items():
            if "reward" in curve:
                values = dict(zip(curve["n"], curve["reward"]["value"], strict=True))
                rows.append([_mark(name, default), *(f"{values[size]:.3f}" for size in sizes)])
    return MetricTable(f"reward of the best of n, one policy, {where}", ["", *(f"n={size}" for size in sizes)], rows)


def _fit_table(figures: Figures, where: str, default: str) -> MetricTable:
    rows = []
    for kind in _KINDS:
        for name, fit in figures["policy"]["fits"][kind].items():
            if fit is not None:
                ends = (_with_error(fit["alpha"]), _with_error(fit["beta"]))
                numbers = (number_cell(fit["r0"]), *ends, number_cell(fit["peak_kl"]), number_cell(fit["r_squared"]))
                rows.append([_mark(name, default), *numbers])
    header = ["", "R(0)", "alpha ± error", "beta ± error", "peak, KL (nats)", "R²"]
    return MetricTable(f"gold as R(0) + d (alpha - beta d), d = sqrt(KL), one policy, {where}", header, rows)


def _with_error(one: Figures) -> str:
    error = one["standard_error"]
    return f"{one['value']:.4f}" + ("" if error is None else f" ± {error:.4f}")
