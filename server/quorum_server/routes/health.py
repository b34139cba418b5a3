"""GET /healthz and /readyz: is the process alive, and can it answer. Knows nothing of why."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from quorum_server.errors import ERROR_RESPONSES
from quorum_server.routes.dependencies import RuntimeDep

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The server's process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Requests can be scored."""

    status: Literal["ready"] = "ready"


@router.get("/healthz")
async def healthz() -> Health:
    """200 while the process serves at all."""
    return Health()


@router.get("/readyz", responses={503: ERROR_RESPONSES[503]})
async def readyz(runtime: RuntimeDep) -> Readiness:
    """200 when requests can be scored; 503 while loading, and when the engine is gone."""
    runtime.check_ready()
    return Readiness()
