"""GET /metrics: what the server counts, for Prometheus. Knows none of the metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from quorum_server.metrics import Metrics

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def get_metrics(request: Request) -> Response:
    """Every metric, in Prometheus' text format or in OpenMetrics."""
    metrics: Metrics = request.app.state.metrics
    content, content_type = metrics.exposition(request.headers.get("accept", ""))
    return Response(content, media_type=content_type)
