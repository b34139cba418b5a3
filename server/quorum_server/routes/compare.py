"""POST /compare: the probability that one response is better than another. Knows nothing of how scores come about."""

from __future__ import annotations

from fastapi import APIRouter

from quorum_client.types import CompareListResponse, CompareRequest, CompareResponse
from quorum_server.body import JsonRoute
from quorum_server.errors import ERROR_RESPONSES
from quorum_server.routes.dependencies import CallDep, ServiceDep

router = APIRouter(route_class=JsonRoute, tags=["scoring"], responses=ERROR_RESPONSES)


@router.post("/compare")
async def compare(body: CompareRequest, service: ServiceDep, call: CallDep) -> CompareResponse | CompareListResponse:
    """P(a beats b), with the margin's mean and std over the members; one pair inline, or a list under `pairs`."""
    return await service.compare(body, call)
