"""Every metric of the server: its name, labels and unit, and where its value comes from.

    events, finished requests  --Metrics-->  GET /metrics

All under the prefix `quorum_`, in base units, besides the standard ones of a process. Bounded: routes are templates,
runs are `RunLabels`', and an ensemble version that is gone is exported once more and then dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from quorum_client.modes import DEFAULT_BETA
from quorum_client.types import CompareListResponse, CompareResponse, RankResponse, ScoreResponse
from quorum_model.bundle.manifest import Manifest
from quorum_model.scoring import PreparedComparisons, PreparedRewards, Rule, ScoringContext
from quorum_server.events import Observer, PassReport, Rejection, RestartReason
from quorum_server.registry import Ensemble
from quorum_server.request_record import RequestRecord, current_record
from quorum_server.tallies import OTHER, RunLabels, RunTally, VersionTally
from quorum_server.uncertainty import FloatArray, calibrate_texts

RUN_HEADER = "x-quorum-run"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SWAP_SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKENS = tuple(float(2**power) for power in range(5, 18))
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_VERSION = ("ensemble", "version")
_RUN = ("ensemble", "version", "run")


class Metrics(Observer):
    """Counts what happens, for one server.

    Args:
        clock: seconds, for how long a run has been idle.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        # They would be a second series for each first one, and Prometheus needs none of them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._make_request_metrics()
        self._make_engine_metrics()
        self._tallies = _Tallies(clock, self._forget)
        self.registry.register(self._tallies)

    def _make_request_metrics(self) -> None:
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        seconds = partial(Histogram, registry=self.registry, buckets=_SECONDS)
        self._requests = counter("quorum_requests", "Requests answered.", ["route", "method", "status", "ensemble"])
        self._request_s = seconds("quorum_request_seconds", "From a request's head to its answer's end.", ["route"])
        self.in_flight = gauge("quorum_requests_in_flight", "Requests with a body that are not yet answered.")
        self._rejections = counter("quorum_rejections", "Requests turned away.", ["reason"])
        self._tokenize_s = seconds("quorum_tokenize_seconds", "Text to token ids, a request.", ["ensemble"])
        self._queue_s = seconds("quorum_queue_seconds", "From queued to the first pass, a request.")
        self._queued_tokens = gauge("quorum_queued_tokens", "Tokens accepted and not yet answered.")

    def _make_engine_metrics(self) -> None:
        histogram = partial(Histogram, registry=self.registry)
        self._forward_s = histogram("quorum_forward_seconds", "A pass, sent to answered.", ["engine"], buckets=_SECONDS)
        self._batch_tokens = histogram("quorum_batch_tokens", "Tokens of a pass.", ["engine"], buckets=_TOKENS)
        self._swap_s = histogram(
            "quorum_swap_seconds", "A load or hot swap.", ["ensemble", "result"], buckets=_SWAP_SECONDS
        )
        self._restarts = Counter(
            "quorum_engine_restarts", "Engines started anew.", ["engine", "reason"], registry=self.registry
        )

    def _forget(self, ensemble: str) -> None:
        for metric in (self._requests, self._tokenize_s, self._swap_s):
            metric.remove_by_labels({"ensemble": ensemble})

    def watch(self, queued_tokens: Callable[[], int], ensembles: Callable[[], Sequence[Ensemble]]) -> None:
        """Say where the values come from that are read when somebody asks."""
        self._queued_tokens.set_function(queued_tokens)
        self._tallies.ensembles = ensembles

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type: OpenMetrics where the Accept header asks for it, or Prometheus' text."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def finished(self, record: RequestRecord, *, route: str, method: str, status: int, elapsed_s: float) -> None:
        """A request ended. route: the template, or "" where it reached none."""
        known_method = method if method in _METHODS else OTHER
        self._requests.labels(route or "none", known_method, str(status), record.ensemble).inc()
        self._request_s.labels(route or "none").observe(elapsed_s)

    def tokenized(self, ensemble: str, elapsed_s: float) -> None:
        """See `Observer`."""
        record = current_record()
        if record is not None:
            record.ensemble = ensemble  # also of a request that fails from here on
        self._tallies.names.add(ensemble)
        self._tokenize_s.labels(ensemble).observe(elapsed_s)

    def left_queue(self, waited_s: float) -> None:
        """See `Observer`."""
        self._queue_s.observe(waited_s)

    def pass_finished(self, report: PassReport) -> None:
        """See `Observer`."""
        self._forward_s.labels(str(report.engine)).observe(report.elapsed_s)
        self._batch_tokens.labels(str(report.engine)).observe(report.submitted_tokens)

    def rejected(self, reason: Rejection) -> None:
        """See `Observer`."""
        self._rejections.labels(reason).inc()

    def swap_finished(self, ensemble: str, version: str | None, elapsed_s: float, error: str | None) -> None:
        """See `Observer`."""
        name = ensemble if self._tallies.is_loaded(ensemble) else OTHER
        self._swap_s.labels(name, "ok" if version is not None else error or "failed").observe(elapsed_s)

    def engine_restarted(self, engine: int, reason: RestartReason) -> None:
        """See `Observer`."""
        self._restarts.labels(str(engine), reason).inc()

    def answered(
        self,
        context: ScoringContext,
        prepared: PreparedRewards | PreparedComparisons,
        raw: NDArray[np.floating[Any]],
        response: ScoreResponse | RankResponse | CompareResponse | CompareListResponse,
    ) -> None:
        """See `Observer`."""
        record = current_record()
        run = ""
        if record is not None:
            run = self._tallies.label_run(record.run_header)
            record.ensemble, record.version, record.run = context.manifest.name, context.version, run
            record.num_items = len(prepared.items if isinstance(prepared, PreparedRewards) else prepared.pairs)
            record.num_tokens = response.usage.prompt_tokens
        tally = self._tallies.of(context)
        tally.submitted_tokens += response.usage.prompt_tokens
        tally.computed_tokens += response.usage.computed_tokens
        texts = calibrate_texts(context.manifest, prepared, raw)
        tally.add(run, texts, _penalties(context.manifest, prepared, response))


def _penalties(
    manifest: Manifest,
    prepared: PreparedRewards | PreparedComparisons,
    response: ScoreResponse | RankResponse | CompareResponse | CompareListResponse,
) -> FloatArray:
    """Mean - lcb of every item that was answered with a std; none of raw scores, which have no common unit."""
    if not (isinstance(prepared, PreparedRewards) and isinstance(response, ScoreResponse | RankResponse)):
        return np.empty(0)
    if not prepared.rule.normalize:
        return np.empty(0)
    spread = [result.std for result in response.results if result.std is not None]
    return _lcb_beta(prepared.rule, manifest) * np.array(spread, np.float64)


def _lcb_beta(rule: Rule, manifest: Manifest) -> float:
    """The request's beta where its mode is lcb; else the one that a request for lcb would get."""
    for mode, beta in ((rule.mode, rule.beta), (manifest.default_mode, manifest.default_beta)):
        if mode == "lcb" and beta is not None:
            return beta
    return DEFAULT_BETA["lcb"]


class _Tallies(Collector):
    """The metrics of ensemble versions, and of runs within them.

    Args:
        clock: see `Metrics`.
        forget: is told the name of an ensemble that is gone in every version.
    """

    def __init__(self, clock: Callable[[], float], forget: Callable[[str], None]) -> None:
        self._runs = RunLabels(clock)
        self._forget = forget
        self.names: set[str] = set()
        self._by_version: dict[tuple[str, str], VersionTally] = {}
        self.ensembles: Callable[[], Sequence[Ensemble]] = list

    def of(self, context: ScoringContext) -> VersionTally:
        """The tally of a version."""
        key = (context.manifest.name, context.version)
        if key not in self._by_version:
            self._drop_gone()  # here too, so that a server that nobody scrapes does not grow with its swaps
            self._by_version[key] = VersionTally(context.manifest.reference_stats)
        return self._by_version[key]

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
            for tally in self._by_version.values():
                tally.runs.pop(evicted, None)
        return label

    def _drop_gone(self) -> None:
        loaded = {(ensemble.name, ensemble.version) for ensemble in self.ensembles()}
        for key in [key for key in self._by_version if key not in loaded]:
            del self._by_version[key]
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
        for key, tally in self._by_version.items():
            submitted.add_metric(key, tally.submitted_tokens)
            computed.add_metric(key, tally.computed_tokens)
            value = tally.drift()
            if value is not None:
                drift.add_metric(key, value)
        yield from (submitted, computed, drift)

    def _run_metrics(self) -> Iterator[Metric]:
        runs = [((*key, run), own) for key, tally in self._by_version.items() for run, own in tally.runs.items()]
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
