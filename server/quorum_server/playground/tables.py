"""What the playground shows, as rows and lists: pure.

    members (N, K), mode, beta  --Ranking-->  order, places, table
    items, results  --most_uncertain-->  rows
    tallies  --run_rows-->  rows

Shapes: `N` candidates, `K` members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorum_client.modes import FloatArray, Mode, aggregate, mean, std
from quorum_client.types import ScoreItem, ScoreResult
from quorum_server.tallies import VersionTally

SEPARATOR = "---"
"""A line of its own between two candidates."""
RANKING_HEAD = ("place", "by mean", "reward", "mean", "std", "candidate")
UNCERTAIN_HEAD = ("line", "std", "mean", "prompt", "response")
RUN_HEAD = ("ensemble", "version", "run", "items", "mean score", "mean std", "beyond p99", "drift")
_SHOWN = 160


def split_candidates(text: str) -> list[str]:
    """Candidates of one text field; those that are blank are left out."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip() == SEPARATOR:
            found.append([])
        else:
            found[-1].append(line)
    candidates = ["\n".join(lines).strip() for lines in found]
    return [candidate for candidate in candidates if candidate]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Candidates in order of reward. mean, std, rewards, places: (N,); places count from 1. members: (K, N).

    std: NaN with one member.
    """

    members: FloatArray
    mean: FloatArray
    std: FloatArray
    rewards: FloatArray
    places: NDArray[np.int64]
    mean_places: NDArray[np.int64]

    @property
    def order(self) -> list[int]:
        """Candidates, the best first."""
        return [int(index) for index in np.argsort(self.places)]


def rank(members: Sequence[Sequence[float]], mode: Mode, beta: float | None) -> Ranking:
    """Rank candidates anew from their members' scores, as the server does: ties go to the earlier one.

    Args:
        members: (N, K), as answered.
        mode: see `aggregate`.
        beta: see `aggregate`.

    Raises:
        InvalidRequest: the mode does not fit the members, or the beta the mode.
    """
    scores = np.array(members, np.float64).T
    rewards, means = aggregate(scores, mode, beta), mean(scores)
    spread = std(scores)
    return Ranking(
        scores,
        means,
        np.full_like(means, np.nan) if spread is None else spread,
        rewards,
        _places(rewards),
        _places(means),
    )


def _places(rewards: FloatArray) -> NDArray[np.int64]:
    places = np.empty(len(rewards), np.int64)
    places[np.argsort(-rewards, kind="stable")] = np.arange(1, len(rewards) + 1)
    return places


def ranking_rows(ranking: Ranking, candidates: Sequence[str]) -> list[list[Any]]:
    """Of `RANKING_HEAD`, the best first."""
    return [
        [
            int(ranking.places[index]),
            _moved(int(ranking.mean_places[index]), int(ranking.places[index])),
            *(_number(values[index]) for values in (ranking.rewards, ranking.mean, ranking.std)),
            shorten(candidates[index]),
        ]
        for index in ranking.order
    ]


def _moved(before: int, now: int) -> str:
    if before == now:
        return str(before)
    return f"{before} (up {before - now})" if now < before else f"{before} (down {now - before})"


def most_uncertain(lines: Sequence[int], items: Sequence[ScoreItem], results: Sequence[ScoreResult]) -> list[list[Any]]:
    """Of `UNCERTAIN_HEAD`, the largest std first; items without one are left out.

    Args:
        lines: each item's number in its file.
        items: as read.
        results: theirs.
    """
    rows = [
        [
            line,
            _number(result.std),
            _number(result.mean),
            shorten(_prompt_of(item)),
            shorten(item.response or item.text or ""),
        ]
        for line, item, result in zip(lines, items, results, strict=True)
        if result.std is not None and result.mean is not None
    ]
    return sorted(rows, key=lambda row: -row[1])


def _prompt_of(item: ScoreItem) -> str:
    if isinstance(item.prompt, list):
        return item.prompt[-1].content if item.prompt else ""
    return item.prompt or ""


def run_rows(tallies: Mapping[tuple[str, str], VersionTally]) -> list[list[Any]]:
    """Of `RUN_HEAD`: what was scored since the start, by run."""
    return [
        [
            ensemble, version, run or "-", int(own.score.counts.sum()),
            _number((own.positive_sum - own.negative_sum) / max(1, own.score.counts.sum())),
            _number(own.std.sum / own.std.counts.sum()) if own.std.counts.sum() else "-",
            f"{own.num_exceeded / own.num_checked:.1%}" if own.num_checked else "-",
            "-" if (drift := tally.drift()) is None else _number(drift),
        ]
        for (ensemble, version), tally in tallies.items()
        for run, own in tally.runs.items()
    ]  # fmt: skip


def shorten(text: str) -> str:
    """The beginning of a text, on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN else f"{flat[: _SHOWN - 1]}…"


def _number(value: float) -> float:
    return round(float(value), 3)
