"""POST /score: rewards of (prompt, response) items. Knows nothing of how they come about."""

from __future__ import annotations

from fastapi import APIRouter

from quorum_client.types import ScoreRequest, ScoreResponse
from quorum_server.body import JsonRoute
from quorum_server.errors import ERROR_RESPONSES
from quorum_server.routes.dependencies import CallDep, ServiceDep

router = APIRouter(route_class=JsonRoute, tags=["scoring"], responses=ERROR_RESPONSES)


@router.post("/score")
async def score(body: ScoreRequest, service: ServiceDep, call: CallDep) -> ScoreResponse:
    """Score (prompt, response) items, templated texts or token ids; an item that cannot be scored says why."""
    return await service.score(body, call)
