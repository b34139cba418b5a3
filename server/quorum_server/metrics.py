"""Every metric of the server: its name, labels and unit, and where its value comes from.

    events, finished requests  --Metrics-->  GET /metrics

All under the prefix `quorum_`, in base units, besides the standard ones of a process. Bounded: routes are templates,
runs are `RunLabels`', and an ensemble version that is gone is exported once more and then dropped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from quorum_client.modes import DEFAULT_BETA
from quorum_client.types import CompareListResponse, CompareResponse, RankResponse, ScoreResponse
from quorum_model.bundle.manifest import Manifest
from quorum_model.scoring import PreparedComparisons, PreparedRewards, Rule, ScoringContext
from quorum_server.events import Observer, PassReport, Rejection, RestartReason
from quorum_server.registry import Ensemble
from quorum_server.request_record import RequestRecord, current_record
from quorum_server.tallies import OTHER, VersionTally
from quorum_server.uncertainty import FloatArray, calibrate_texts
from quorum_server.version_metrics import VersionMetrics

RUN_HEADER = "x-quorum-run"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GENERATION_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_SWAP_SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKENS = tuple(float(2**power) for power in range(5, 18))
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_STD = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Units of the calibrated score."""


class Metrics(Observer):
    """Counts what happens, for one server.

    Args:
        num_engines: how many will run.
        clock: seconds, for how long a run has been idle.
    """

    def __init__(self, num_engines: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        # They would be a second series for each first one, and Prometheus needs none of them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._make_request_metrics()
        self._make_engine_metrics()
        self._make_generator_metrics()
        self._begin_at_zero(num_engines)
        self._tallies = VersionMetrics(clock, self._forget)
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

        self._memory = _EngineMemory()
        self.registry.register(self._memory)

    def _make_generator_metrics(self) -> None:
        counter, histogram = partial(Counter, registry=self.registry), partial(Histogram, registry=self.registry)
        self._generation_s = histogram(
            "quorum_generation_seconds", "Candidates of a request, asked to written.", buckets=_GENERATION_SECONDS
        )
        self._candidates = counter("quorum_generated_candidates", "Candidates that the generator wrote.")
        self._generated_tokens = counter("quorum_generated_tokens", "Their tokens, as the generator counts them.")
        self._generation_failures = counter("quorum_generation_failures", "Requests without candidates.", ["code"])
        self._unranked = counter("quorum_unranked_candidates", "Candidates that could not be scored.")
        self._picked_std = histogram("quorum_picked_std", "Std over members of a picked candidate.", buckets=_STD)

    def _begin_at_zero(self, num_engines: int) -> None:
        """What is to alarm at its first event: Prometheus sees no increase in a series that begins with it."""
        for reason in get_args(Rejection):
            self._rejections.labels(reason)
        for engine, why in product(range(num_engines), get_args(RestartReason)):
            self._restarts.labels(str(engine), why)

    def _forget(self, ensemble: str) -> None:
        for metric in (self._requests, self._tokenize_s, self._swap_s):
            metric.remove_by_labels({"ensemble": ensemble})

    def by_version(self) -> Mapping[tuple[str, str], VersionTally]:
        """What was counted of each ensemble version, by (name, version); to be read only."""
        return self._tallies.by_version

    def watch(
        self,
        queued_tokens: Callable[[], int],
        ensembles: Callable[[], Sequence[Ensemble]],
        engine_pids: Callable[[], Mapping[int, int]],
    ) -> None:
        """Say where the values come from that are read when somebody asks."""
        self._queued_tokens.set_function(queued_tokens)
        self._tallies.ensembles = ensembles
        self._memory.pids = engine_pids

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

    def generated(self, elapsed_s: float, num_candidates: int, num_tokens: int) -> None:
        """See `Observer`."""
        self._generation_s.observe(elapsed_s)
        self._candidates.inc(num_candidates)
        self._generated_tokens.inc(num_tokens)

    def generation_failed(self, code: str) -> None:
        """See `Observer`."""
        self._generation_failures.labels(code).inc()

    def picked(self, std: float | None, num_failed: int) -> None:
        """See `Observer`."""
        self._unranked.inc(num_failed)
        if std is not None:
            self._picked_std.observe(std)

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


class _EngineMemory(Collector):
    """Resident memory of the engines' processes, which Prometheus' own collector knows nothing of."""

    def __init__(self) -> None:
        self.pids: Callable[[], Mapping[int, int]] = dict

    def describe(self) -> list[Metric]:
        """Nothing: engines are known once they run."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One value an engine that runs, where the system tells."""
        family = GaugeMetricFamily("quorum_engine_resident_bytes", "Memory of an engine's process.", labels=["engine"])
        for engine, pid in self.pids().items():
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
            except (OSError, IndexError, ValueError):  # it has just ended, or this is no Linux
                continue
            family.add_metric([str(engine)], pages * os.sysconf("SC_PAGE_SIZE"))
        yield family
