"""What a script implies that the metrics are: series by name and labels, kept by hand, and PromQL's arithmetic on them.

    add, observe  --Book.series-->  {(name, labels): value} before and after the load  --Window-->  rates, quantiles

Shares no code with the server or with Prometheus: `Window.increase` follows the published rule of `extrapolatedRate`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Labels = frozenset[tuple[str, str]]
Series = tuple[str, Labels]
Vector = dict[Labels, float]


def labels_of(**labels: str) -> Labels:
    return frozenset(labels.items())


@dataclass
class Book:
    """counts: of counters and gauges. seen: the values that a histogram was told."""

    counts: dict[Series, float] = field(default_factory=lambda: defaultdict(float))
    seen: dict[Series, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        self.counts[name, labels_of(**labels)] += amount

    def observe(self, name: str, *values: float, **labels: str) -> None:
        self.seen[name, labels_of(**labels)] += values

    def series(self, edges: Mapping[str, Sequence[str]]) -> dict[Series, float]:
        """All of it as Prometheus has it. edges: by histogram, as written in `le`."""
        found = dict(self.counts)
        for (name, labels), values in self.seen.items():
            found[f"{name}_count", labels] = len(values)
            found[f"{name}_sum", labels] = math.fsum(values)
            for edge in edges[name]:
                found[f"{name}_bucket", labels | {("le", edge)}] = sum(value <= float(edge) for value in values)
        return found


@dataclass(frozen=True)
class Window:
    """before, after: at the first and the last scrape. times: of all scrapes, seconds. end: of the query."""

    before: Mapping[Series, float]
    after: Mapping[Series, float]
    times: Sequence[float]
    end: float

    def increase(self, name: str, seconds: float, **wanted: str | Callable[[str], bool]) -> Vector:
        """increase(name{wanted}[seconds]) (Prometheus, promql/functions.go, extrapolatedRate)."""
        return {
            labels: self._increase(self.before[name, labels], after, seconds)
            for (other, labels), after in self.after.items()
            if other == name and _matches(dict(labels), wanted)
        }

    def rate(self, name: str, seconds: float, **wanted: str | Callable[[str], bool]) -> Vector:
        return {labels: value / seconds for labels, value in self.increase(name, seconds, **wanted).items()}

    def now(self, name: str) -> Vector:
        return {labels: value for (other, labels), value in self.after.items() if other == name}

    def _increase(self, before: float, after: float, seconds: float) -> float:
        sampled = self.times[-1] - self.times[0]
        average = sampled / (len(self.times) - 1)
        to_start, to_end = self.times[0] - (self.end - seconds), self.end - self.times[-1]
        if after > before:
            to_start = min(to_start, sampled * before / (after - before))  # a counter was never below zero
        reached = sampled + sum(one if one < 1.1 * average else average / 2 for one in (to_start, to_end))
        return (after - before) * reached / sampled


def sum_by(vector: Vector, *names: str) -> Vector:
    found: Vector = defaultdict(float)
    for labels, value in vector.items():
        found[frozenset((name, value_) for name, value_ in labels if name in names and value_)] += value
    return dict(found)


def combine(arithmetic: Callable[[float, float], float], left: Vector, right: Vector) -> Vector:
    """Of the labels that both have."""
    return {labels: arithmetic(left[labels], right[labels]) for labels in left.keys() & right.keys()}


def divide(left: Vector, right: Vector) -> Vector:
    return combine(lambda a, b: a / b if b else math.nan, left, right)


def subtract(left: Vector, right: Vector) -> Vector:
    return combine(lambda a, b: a - b, left, right)


def quantile(q: float, buckets: Vector) -> Vector:
    """histogram_quantile: linear within a bucket, the first from zero, the last edge where it is the endless one."""
    groups: dict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for labels, value in buckets.items():
        edge = dict(labels)["le"]
        groups[frozenset(one for one in labels if one[0] != "le")].append((float(edge), value))
    return {labels: _quantile(q, sorted(pairs)) for labels, pairs in groups.items()}


def _quantile(q: float, buckets: list[tuple[float, float]]) -> float:
    total = buckets[-1][1]
    if total == 0:
        return math.nan
    at = next(index for index, (_, count) in enumerate(buckets) if count >= q * total)
    if at == len(buckets) - 1:
        return buckets[-2][0]
    low, below = buckets[at - 1] if at else (0.0, 0.0)
    edge, count = buckets[at]
    return low + (edge - low) * (q * total - below) / (count - below)


def _matches(labels: Mapping[str, str], wanted: Mapping[str, str | Callable[[str], bool]]) -> bool:
    return all(
        test(labels.get(name, "")) if callable(test) else labels.get(name, "") == test for name, test in wanted.items()
    )
