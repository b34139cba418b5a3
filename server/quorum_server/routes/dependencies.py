"""What the endpoints get from outside their body: the service, the registry, the call's id and deadline.

Knows nothing of what the endpoints do with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import Depends, Header, Request

from quorum_server.deadline import TIMEOUT_HEADER, deadline_of
from quorum_server.member_edits import MemberEditor
from quorum_server.reconciler import Reconciler
from quorum_server.registry import Registry
from quorum_server.runtime import Runtime
from quorum_server.service import Call, ScoringService


def _get_runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


RuntimeDep = Annotated[Runtime, Depends(_get_runtime)]


def get_service(runtime: RuntimeDep) -> ScoringService:
    """The service, where an engine is there to answer.

    Raises:
        NotReady: there is none.
    """
    runtime.admission.check_open()
    runtime.check_ready()
    return runtime.service


def _get_registry(runtime: RuntimeDep) -> Registry:
    return runtime.registry


def _get_reconciler(runtime: RuntimeDep) -> Reconciler:
    return runtime.reconciler


def _get_open_reconciler(runtime: RuntimeDep) -> Reconciler:
    """The reconciler, for a change.

    Raises:
        NotReady: the server is ending.
    """
    runtime.admission.check_open()
    return runtime.reconciler


def _get_editor(runtime: RuntimeDep) -> MemberEditor:
    """What changes members.

    Raises:
        NotReady: the server is ending.
    """
    runtime.admission.check_open()
    return runtime.member_editor


def _get_call(
    request: Request,
    _: Annotated[  # for the OpenAPI entry: `deadline_of` reads it, before the body
        int | None,
        Header(alias=TIMEOUT_HEADER, ge=0, description="milliseconds from arrival until the answer is of no use: 504"),
    ] = None,
) -> Call:
    return Call(request.state.request_id, deadline_of(request))


def _get_roots(request: Request) -> tuple[Path, ...]:
    roots: tuple[Path, ...] = request.app.state.bundle_roots
    return roots


RootsDep = Annotated[tuple[Path, ...], Depends(_get_roots)]
ServiceDep = Annotated[ScoringService, Depends(get_service)]
RegistryDep = Annotated[Registry, Depends(_get_registry)]
ReconcilerDep = Annotated[Reconciler, Depends(_get_reconciler)]
OpenReconcilerDep = Annotated[Reconciler, Depends(_get_open_reconciler)]
EditorDep = Annotated[MemberEditor, Depends(_get_editor)]
CallDep = Annotated[Call, Depends(_get_call)]
