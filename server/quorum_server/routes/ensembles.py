"""/v1/ensembles and /v1/models: what serves here, and how that is changed. Knows nothing of how it is loaded."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel

from quorum_client.ensemble_types import EnsembleList, EnsembleStatus, PutEnsembleRequest, PutMemberRequest
from quorum_client.modes import Mode
from quorum_client.types import EnsembleInfo
from quorum_model.bundle.edit import Fitted
from quorum_model.bundle.manifest import NAME_PATTERN
from quorum_server.allowed_sources import check_source
from quorum_server.body import JsonRoute
from quorum_server.errors import ERROR_RESPONSES
from quorum_server.gateway.gateway import Gateway
from quorum_server.routes.dependencies import EditorDep, OpenReconcilerDep, ReconcilerDep, RegistryDep, RootsDep

router = APIRouter(tags=["ensembles"])
editing = APIRouter(route_class=JsonRoute, tags=["ensembles"])

NamePath = Annotated[str, Path(pattern=NAME_PATTERN)]
MemberPath = Annotated[str, Path(pattern=r"^m[0-9]{2,}$")]


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


def _errors(*statuses: int) -> dict[int | str, Any]:
    return {status: ERROR_RESPONSES[status] for status in statuses}


@router.get("/v1/ensembles")
async def list_ensembles(reconciler: ReconcilerDep) -> EnsembleList:
    """What serves, and what is to serve: the two differ while a bundle is loaded, or where it cannot be, and why."""
    ensembles = [ensemble.info() for ensemble in reconciler.registry.list()]
    return EnsembleList(ensembles=ensembles, desired=reconciler.statuses())


@router.get("/v1/ensembles/{name}", responses=_errors(404, 503))
async def get_ensemble(name: str, reconciler: ReconcilerDep) -> EnsembleInfo:
    """One ensemble that serves, by `name` or `name@version`."""
    return reconciler.registry.get(name).info()


@editing.put("/v1/ensembles/{name}", responses={202: {"model": EnsembleStatus}, **_errors(400, 409, 413, 422, 503)})
async def put_ensemble(
    name: NamePath,
    body: PutEnsembleRequest,
    reconciler: OpenReconcilerDep,
    roots: RootsDep,
    response: Response,
    wait: bool = True,
) -> EnsembleInfo | EnsembleStatus:
    """Load a bundle and serve it under this name: beside what serves now, then in its place in one step.

    Answers when it serves, or says why it cannot; then what served before serves on. With `wait=false` it answers 202
    at once; GET /v1/ensembles shows what became of it.
    """
    ensemble = await reconciler.put(name, check_source(body.source, roots), wait=wait, by_request=True)
    if ensemble is not None:
        return ensemble.info()
    response.status_code = 202
    return reconciler.status(name)


@router.delete("/v1/ensembles/{name}", status_code=204, responses=_errors(404, 409, 503))
async def delete_ensemble(name: str, reconciler: OpenReconcilerDep) -> None:
    """Serve nothing under this name any more; requests under way finish."""
    reconciler.remove(name)


@editing.put("/v1/ensembles/{name}/members/{member}", responses=_errors(400, 404, 409, 413, 422, 503))
async def put_member(
    name: NamePath, member: MemberPath, body: PutMemberRequest, editor: EditorDep, roots: RootsDep
) -> EnsembleInfo:
    """Add or replace one member of a live ensemble, taken from another bundle: a new bundle, hence a new version.

    Pair temperature, default mode and beta were fitted to the old members: they are dropped unless given.
    """
    fitted = Fitted(body.pair_temperature, body.default_mode, body.default_beta)
    return (await editor.put(name, member, check_source(body.source, roots), body.member, fitted)).info()


@router.delete("/v1/ensembles/{name}/members/{member}", responses=_errors(404, 409, 422, 503))
async def delete_member(
    name: NamePath,
    member: MemberPath,
    editor: EditorDep,
    pair_temperature: Annotated[float, Query(gt=0, allow_inf_nan=False)] = 1.0,
    default_mode: Mode = "mean",
    default_beta: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None,
) -> EnsembleInfo:
    """Remove one member of a live ensemble; see PUT for what is dropped."""
    return (await editor.remove(name, member, Fitted(pair_temperature, default_mode, default_beta))).info()


@router.get("/v1/models")
async def list_models(registry: RegistryDep, request: Request) -> ModelList:
    """The loaded ensembles in the shape of OpenAI's list of models; with a generator its models too, while it answers.

    `created` of the generator's is when this server was asked.
    """
    cards = [ModelCard(id=ensemble.name, created=ensemble.created_s) for ensemble in registry.list()]
    gateway: Gateway | None = request.app.state.gateway
    if gateway is not None:
        now = int(time.time())
        cards += [ModelCard(id=name, created=now, owned_by="generator") for name in await gateway.models()]
    return ModelList(data=cards)
