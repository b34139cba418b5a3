"""What is counted of one ensemble version, as plain numbers, until it is gone, and the labels of its runs.

    values of a request  --add-->  Histogram, RunTally, VersionTally  --read-->  metrics
    X-Quorum-Run  --RunLabels-->  one of a bounded number of labels

Fed with whole arrays: a request of thousands of items must not hold up the event loop. Knows no names of metrics and no
format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from quorum_model.bundle.manifest import ReferenceStats
from quorum_server.uncertainty import CalibratedTexts, FloatArray, has_histogram, rank_disagreement, score_drift

MAX_RUNS = 32
OTHER = "other"
_RUN_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_IDLE_RUN_S = 24 * 3600.0

DRIFT_WINDOW = 4096
"""The most recent items that the drift is of."""
MIN_DRIFT_ITEMS = 512
"""Below it the drift of a sample from the reference itself would often be above 0.06."""
_OUTER_QUANTILE = "0.99"

STD_BUCKETS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
SCORE_BUCKETS = (-20.0, -10.0, -7.5, -5.0, -4.0, -3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0,
                 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0, 20.0)  # fmt: skip
SHARE_BUCKETS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)


class Histogram:
    """Counts by upper edge, as Prometheus has them: a value on an edge belongs below it."""

    def __init__(self, edges: Sequence[float]) -> None:
        self.edges = np.array(edges)
        self.counts = np.zeros(len(edges) + 1, np.int64)
        self.sum = 0.0

    def add(self, values: FloatArray) -> None:
        """Count finite values."""
        if len(values):
            self.counts += np.bincount(self.edges.searchsorted(values, side="left"), minlength=len(self.counts))
            self.sum += float(values.sum())

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper edge, how many are not above it), the last edge +Inf."""
        names = [*(str(edge) for edge in self.edges.tolist()), "+Inf"]
        return list(zip(names, np.cumsum(self.counts).astype(float).tolist(), strict=True))


@dataclass(slots=True)
class RunTally:
    """What one run's items looked like.

    positive_sum, negative_sum: of the scores above zero, and of -score below it; apart, since Prometheus takes a sum
    that falls for a restart. num_checked, num_exceeded: items whose std has a yardstick, and is above it.
    """

    score: Histogram = field(default_factory=lambda: Histogram(SCORE_BUCKETS))
    std: Histogram = field(default_factory=lambda: Histogram(STD_BUCKETS))
    penalty: Histogram = field(default_factory=lambda: Histogram(STD_BUCKETS))
    disagreement: Histogram = field(default_factory=lambda: Histogram(SHARE_BUCKETS))
    positive_sum: float = 0.0
    negative_sum: float = 0.0
    num_checked: int = 0
    num_exceeded: int = 0


class VersionTally:
    """What one ensemble version was asked and answered.

    Args:
        reference: of its bundle.
    """

    def __init__(self, reference: ReferenceStats | None) -> None:
        self._reference = reference
        self._has_histogram = has_histogram(reference)
        self._max_std = reference.std_quantiles.get(_OUTER_QUANTILE) if reference is not None else None
        self._recent: FloatArray = np.empty(0)
        self.submitted_tokens = 0
        self.computed_tokens = 0
        self.runs: dict[str, RunTally] = {}

    def add(self, run: str, texts: CalibratedTexts, penalties: FloatArray) -> None:
        """Count one request's items.

        Args:
            run: its label.
            texts: of N items.
            penalties: mean - lcb of the items that were answered with a spread.
        """
        tally = self.runs.get(run)
        if tally is None:
            tally = self.runs[run] = RunTally()
        means = texts.scores.mean(axis=0)
        tally.score.add(means)
        tally.positive_sum += float(means[means > 0].sum())
        tally.negative_sum -= float(means[means < 0].sum())
        tally.penalty.add(penalties)
        tally.disagreement.add(rank_disagreement(texts))
        if texts.scores.shape[0] > 1:
            spread = texts.scores.std(axis=0, ddof=1)
            tally.std.add(spread)
            if self._max_std is not None:
                tally.num_checked += len(spread)
                tally.num_exceeded += int(np.count_nonzero(spread > self._max_std))
        if self._has_histogram:
            self._recent = np.concatenate([self._recent, means])[-DRIFT_WINDOW:]

    def drift(self) -> float | None:
        """See `score_drift`, over the most recent items; None where there are too few, or nothing to compare with."""
        if self._reference is None or len(self._recent) < MIN_DRIFT_ITEMS:
            return None
        return score_drift(self._reference, self._recent)


class RunLabels:
    """Gives runs their labels, at most `MAX_RUNS` of them.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_seen_s: dict[str, float] = {}

    def label(self, header: str) -> tuple[str, str | None]:
        """The label for what a request says of its run, and the one that had to go for it, if any.

        It is the name itself; empty for none; `other` for what is no name, and while all labels were used within a day.
        """
        if not header:
            return "", None
        if not _RUN_NAME.fullmatch(header):
            return OTHER, None
        now_s, evicted = self._clock(), None
        if header not in self._last_seen_s and len(self._last_seen_s) >= MAX_RUNS:
            evicted = min(self._last_seen_s, key=self._last_seen_s.__getitem__)
            if now_s - self._last_seen_s[evicted] < _IDLE_RUN_S:
                return OTHER, None
            del self._last_seen_s[evicted]
        self._last_seen_s[header] = now_s
        return header, evicted
