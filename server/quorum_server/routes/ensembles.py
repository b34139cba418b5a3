"""GET /v1/ensembles and /v1/models: what is loaded here. Knows nothing of loading."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from quorum_client.types import EnsembleInfo, EnsembleList
from quorum_server.errors import ERROR_RESPONSES
from quorum_server.routes.dependencies import RegistryDep

router = APIRouter(tags=["ensembles"])


class ModelCard(BaseModel):
    """An ensemble, as OpenAI's list of models shows a model. created: Unix time of loading, in seconds."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "quorum"


class ModelList(BaseModel):
    """Answer of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.get("/v1/ensembles")
async def list_ensembles(registry: RegistryDep) -> EnsembleList:
    """Every loaded ensemble; an empty list while the first one loads."""
    return EnsembleList(ensembles=[ensemble.info() for ensemble in registry.list()])


@router.get("/v1/ensembles/{name}", responses={status: ERROR_RESPONSES[status] for status in (404, 503)})
async def get_ensemble(name: str, registry: RegistryDep) -> EnsembleInfo:
    """One ensemble, by `name` or `name@version`."""
    return registry.get(name).info()


@router.get("/v1/models")
async def list_models(registry: RegistryDep) -> ModelList:
    """The loaded ensembles in the shape of OpenAI's list of models."""
    return ModelList(data=[ModelCard(id=ensemble.name, created=ensemble.created_s) for ensemble in registry.list()])
