"""POST /rank: order the candidates of one prompt (Best-of-N). Knows nothing of how scores come about."""

from __future__ import annotations

from fastapi import APIRouter

from quorum_client.types import RankRequest, RankResponse
from quorum_server.body import JsonRoute
from quorum_server.errors import ERROR_RESPONSES
from quorum_server.routes.dependencies import CallDep, ServiceDep

router = APIRouter(route_class=JsonRoute, tags=["scoring"], responses=ERROR_RESPONSES)


@router.post("/rank")
async def rank(body: RankRequest, service: ServiceDep, call: CallDep) -> RankResponse:
    """Order the candidates of one prompt from best to worst."""
    return await service.rank(body, call)
