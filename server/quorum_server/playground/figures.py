"""The playground's pictures: matplotlib figures of a ranking, of a comparison and of the server's load. Pure.

Figures are made without pyplot, which would keep each one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quorum_client.types import CompareResponse
from quorum_server.playground.tables import Ranking, shorten

_MEAN, _REWARD, _MEMBER = "#7aa6c2", "#e0913a", "#222222"
_WIDTH = 8.0
_LABEL = 40


def draw_ranking(ranking: Ranking, candidates: Sequence[str], reward: str) -> Figure:
    """Each candidate a row, the best on top: mean and reward as bars, members as dots. reward: its bar's name."""
    order = ranking.order
    figure, axes = _axes(1.2 + 0.6 * len(order))
    rows = range(len(order))
    axes.barh([row - 0.18 for row in rows], ranking.mean[order], 0.32, color=_MEAN, label="mean")
    axes.barh([row + 0.18 for row in rows], ranking.rewards[order], 0.32, color=_REWARD, label=reward)
    for number, member in enumerate(ranking.members):
        axes.plot(member[order], rows, "o", color=_MEMBER, markersize=4, label="members" if number == 0 else None)
    axes.set_yticks(list(rows), [_label(candidates[index]) for index in order])
    axes.invert_yaxis()
    axes.axvline(0, color="#999999", linewidth=0.8)
    axes.set_xlabel("calibrated score")
    axes.legend(loc="best", fontsize=8)
    return figure


def draw_comparison(answer: CompareResponse) -> Figure:
    """Members' margins as dots, their mean and one std to both sides; nothing where there is no margin."""
    figure, axes = _axes(1.8)
    if answer.margin is not None and answer.members is not None:
        axes.errorbar(
            answer.margin.mean, 0, xerr=answer.margin.std or 0, fmt="D", color=_REWARD, capsize=4, label="mean, std"
        )
        axes.plot(answer.members, [0.0] * len(answer.members), "o", color=_MEMBER, markersize=4, label="members")
        axes.legend(loc="best", fontsize=8)
    axes.axvline(0, color="#999999", linewidth=0.8)
    axes.set_yticks([])
    axes.set_xlabel("margin: a is better to the right, b to the left")
    return figure


@dataclass(frozen=True, slots=True)
class LoadSample:
    """at_s: of the event loop's clock. std: mean over the items since the sample before; None for none."""

    at_s: float
    queued_tokens: int
    std: float | None


def draw_load(samples: Sequence[LoadSample]) -> Figure:
    """Queued tokens, and the mean std of what was scored, over the last minutes."""
    figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    times = [sample.at_s - samples[-1].at_s for sample in samples]
    above.plot(times, [sample.queued_tokens for sample in samples], "o-", color=_MEAN, markersize=3)
    above.set_ylim(bottom=0)
    above.set_ylabel("queued tokens")
    known = [(time, sample.std) for time, sample in zip(times, samples, strict=True) if sample.std is not None]
    below.plot([time for time, _ in known], [std for _, std in known], "o-", color=_REWARD, markersize=3)
    below.set_ylim(bottom=0)
    below.set_ylabel("mean std")
    below.set_xlabel("seconds")
    return figure


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, min(height, 24.0)), layout="constrained")
    return figure, figure.subplots()


def _label(text: str) -> str:
    # Dollars would be read as formulas.
    short = shorten(text).replace("$", r"\$")
    return short if len(short) <= _LABEL else f"{short[: _LABEL - 1]}…"
