"""The wire types of /v1/ensembles beyond a loaded ensemble itself: what is to serve, and how that is changed.

    PutEnsembleRequest  -> PUT /v1/ensembles/{name}  -> EnsembleInfo, or EnsembleStatus with 202
                           GET /v1/ensembles         -> EnsembleList
    PutMemberRequest    -> PUT /v1/ensembles/{name}/members/{member}  -> EnsembleInfo

Knows no HTTP and no torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quorum_client.modes import Mode
from quorum_client.types import EnsembleInfo, ItemError, RequestModel, ResponseModel


class EnsembleStatus(ResponseModel):
    """What a name is to serve, and how far that is.

    source: desired. state: whether it serves, is being loaded, or failed with `error`. version: what serves now, which
    is an earlier version while another one is loaded or has failed; null for nothing.
    """

    name: str
    source: str
    state: Literal["serving", "loading", "failed"]
    version: str | None
    error: ItemError | None = None


class EnsembleList(ResponseModel):
    """Answer of GET /v1/ensembles. ensembles: what serves. desired: what is to serve."""

    ensembles: list[EnsembleInfo]
    desired: list[EnsembleStatus] = Field(default_factory=list)


class PutEnsembleRequest(RequestModel):
    """Body of PUT /v1/ensembles/{name}: serve this bundle under the name."""

    source: str = Field(min_length=1, max_length=4096, description="a folder, a hub id, or default")


class PutMemberRequest(RequestModel):
    """Body of PUT /v1/ensembles/{name}/members/{member}: take the member from another bundle.

    member: its name there, if another one. What was fitted to the members together is dropped unless it is given.
    """

    source: str = Field(min_length=1, max_length=4096, description="a folder, a hub id, or default")
    member: str | None = None
    pair_temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    default_mode: Mode = "mean"
    default_beta: float | None = Field(None, ge=0, allow_inf_nan=False)
