"""The metrics of ensemble versions, and of runs within them: read from tallies when somebody asks.

    VersionTally, RunTally  --VersionMetrics.collect-->  metric families

An ensemble version that is gone is exported once more and then dropped. The rest of the metrics is in `metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from quorum_model.scoring import ScoringContext
from quorum_server.registry import Ensemble
from quorum_server.tallies import RunLabels, RunTally, VersionTally

_VERSION = ("ensemble", "version")
_RUN = ("ensemble", "version", "run")


class VersionMetrics(Collector):
    """The metrics of ensemble versions, and of runs within them.

    Args:
        clock: see `Metrics`.
        forget: is told the name of an ensemble that is gone in every version.
    """

    def __init__(self, clock: Callable[[], float], forget: Callable[[str], None]) -> None:
        self._runs = RunLabels(clock)
        self._forget = forget
        self.names: set[str] = set()
        self.by_version: dict[tuple[str, str], VersionTally] = {}
        self.ensembles: Callable[[], Sequence[Ensemble]] = list

    def of(self, context: ScoringContext) -> VersionTally:
        """The tally of a version."""
        key = (context.manifest.name, context.version)
        if key not in self.by_version:
            self._drop_gone()  # here too, so that a server that nobody scrapes does not grow with its swaps
            self.by_version[key] = VersionTally(context.manifest.reference_stats)
        return self.by_version[key]

    def is_loaded(self, name: str) -> bool:
        """Whether an ensemble of this name is loaded; from here on its end is noticed."""
        if all(ensemble.name != name for ensemble in self.ensembles()):
            return False
        self.names.add(name)
        return True

    def label_run(self, header: str) -> str:
        """The label of a run."""
        label, evicted = self._runs.label(header)
        if evicted is not None:
            for tally in self.by_version.values():
                tally.runs.pop(evicted, None)
        return label

    def _drop_gone(self) -> None:
        loaded = {(ensemble.name, ensemble.version) for ensemble in self.ensembles()}
        for key in [key for key in self.by_version if key not in loaded]:
            del self.by_version[key]
        for name in self.names - {name for name, _ in loaded}:
            self.names.discard(name)
            self._forget(name)

    def describe(self) -> list[Metric]:
        """Nothing: names are known once there are values."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics, those of versions that are gone for the last time."""
        yield self._info()
        yield from self._version_metrics()
        yield from self._run_metrics()
        self._drop_gone()

    def _info(self) -> Metric:
        info = InfoMetricFamily("quorum_ensemble", "A version that is loaded.", labels=_VERSION)
        for ensemble in self.ensembles():
            loaded = ensemble.loaded
            about = {"kind": ensemble.manifest.kind, "members": str(loaded.num_members)}
            about |= {"dtype": loaded.dtype, "device": loaded.device, "attention": loaded.attention}
            info.add_metric([ensemble.name, ensemble.version], about)
        return info

    def _version_metrics(self) -> Iterator[Metric]:
        submitted = CounterMetricFamily("quorum_submitted_tokens", "Tokens that were asked for.", labels=_VERSION)
        computed = CounterMetricFamily("quorum_computed_tokens", "Tokens that engines computed.", labels=_VERSION)
        drift = GaugeMetricFamily("quorum_score_drift", "Recent scores against the bundle's (KS).", labels=_VERSION)
        for key, tally in self.by_version.items():
            submitted.add_metric(key, tally.submitted_tokens)
            computed.add_metric(key, tally.computed_tokens)
            value = tally.drift()
            if value is not None:
                drift.add_metric(key, value)
        yield from (submitted, computed, drift)

    def _run_metrics(self) -> Iterator[Metric]:
        runs = [((*key, run), own) for key, tally in self.by_version.items() for run, own in tally.runs.items()]
        for name, text, get in _RUN_HISTOGRAMS:
            histogram = HistogramMetricFamily(name, text, labels=_RUN)
            for labels, own in runs:
                values = get(own)
                # Prometheus' own library, too, leaves out a sum that may fall: see `RunTally`.
                histogram.add_metric(labels, values.cumulative(), values.sum if values.edges[0] >= 0 else None)
            yield histogram
        for name, text, count in _RUN_COUNTERS:
            counter = CounterMetricFamily(name, text, labels=_RUN)
            for labels, own in runs:
                counter.add_metric(labels, count(own))
            yield counter


_RUN_HISTOGRAMS: tuple[tuple[str, str, Callable[[RunTally], Any]], ...] = (
    ("quorum_calibrated_score", "Mean over members, an item, not centred.", lambda run: run.score),
    ("quorum_score_std", "Std over members, an item, not centred.", lambda run: run.std),
    ("quorum_lcb_penalty", "Mean - lcb of an item, as it was answered.", lambda run: run.penalty),
    ("quorum_rank_disagreement", "Kendall distance of members' orders of a prompt.", lambda run: run.disagreement),
)
_RUN_COUNTERS: tuple[tuple[str, str, Callable[[RunTally], float]], ...] = (
    ("quorum_calibrated_score_positive", "Sum of the scores above zero.", lambda run: run.positive_sum),
    ("quorum_calibrated_score_negative", "Sum of -score of those below zero.", lambda run: run.negative_sum),
    ("quorum_std_checked_items", "Items whose std was held against the bundle's.", lambda run: run.num_checked),
    ("quorum_std_exceeded_items", "Of these, above its 99th percentile.", lambda run: run.num_exceeded),
)
