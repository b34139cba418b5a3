"""OpenTelemetry traces, where a collector is named; without one nothing is loaded and a span costs a comparison.

    request span (route, status, request id)  >  tokenize, compute, finish  --OTLP over HTTP-->  collector

Sampling, resource attributes and headers follow OpenTelemetry's own variables (`OTEL_TRACES_SAMPLER` and others).
Spans hold names, counts and versions, never text or keys.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from quorum_client.errors import MissingExtra

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

_NOT_TRACED = "/healthz$,/readyz$,/metrics$"  # expressions, looked for in the whole URL


class Traces:
    """Spans of requests and of their phases.

    Args:
        endpoint: URL of a collector's OTLP/HTTP traces, as http://127.0.0.1:4318/v1/traces; None for no traces.

    Raises:
        MissingExtra: OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str | None) -> None:
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None
        if endpoint is not None:
            self._provider = _make_provider(endpoint)
            self._tracer = self._provider.get_tracer("quorum_server")

    def watch(self, app: FastAPI) -> None:
        """A span for every request of this application but probes and scrapes, in the client's trace if it sent one."""
        if self._provider is None:
            return
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=self._provider,
            excluded_urls=_NOT_TRACED,
            exclude_spans=["receive", "send"],
        )

    def mark(self, request_id: str) -> None:
        """Name the request that runs here in its span."""
        if self._tracer is not None:
            from opentelemetry.trace import get_current_span

            get_current_span().set_attribute("quorum.request_id", request_id)

    def span(self, name: str, **attributes: str | int) -> AbstractContextManager[Any]:
        """What is inside is this phase of the request that runs here."""
        if self._tracer is None:
            return nullcontext()
        return self._tracer.start_as_current_span(
            name, attributes={f"quorum.{key}": value for key, value in attributes.items()}
        )

    def close(self) -> None:
        """Send what is left. Blocks, for a few seconds at most where the collector is away."""
        if self._provider is not None:
            self._provider.shutdown()


def _make_provider(endpoint: str) -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor  # noqa: F401 - here it can be said well
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtra("traces need OpenTelemetry: pip install 'quorum-rm[traces]'") from error
    own_name = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "quorum"}
    provider = TracerProvider(resource=Resource.create(own_name))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=5)))
    return provider
