"""A member of a live ensemble added, replaced or removed: a new bundle is written, then swapped in like any other.

    MemberChange  --edit: new bundle in the server's own folder-->  Reconciler.put

One edit at a time, each on what serves then. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from quorum_client.errors import InvalidRequest
from quorum_model.bundle.edit import Fitted, put_member, remove_member
from quorum_model.bundle.read import Bundle, read_bundle
from quorum_model.errors import BundleError
from quorum_server.loading import Resolve, read_source
from quorum_server.reconciler import Reconciler
from quorum_server.registry import Ensemble
from quorum_server.wishes import Conflict

Edit = Callable[[Bundle, Path], Bundle]


class MemberEditor:
    """Edits members.

    Args:
        reconciler: swaps the new bundle in.
        resolve: finds the bundles that members come from.
        folder: where new bundles are written, created when needed; None refuses every edit.
    """

    def __init__(self, reconciler: Reconciler, resolve: Resolve, folder: Path | None) -> None:
        self._reconciler = reconciler
        self._resolve = resolve
        self._folder = folder
        self._turn = asyncio.Lock()

    async def put(self, name: str, member: str, source: str, source_member: str | None, fitted: Fitted) -> Ensemble:
        """Serve `name` with `member` taken from another bundle.

        Args:
            name: of the ensemble.
            member: to add or to replace.
            source: the bundle that has it.
            source_member: its name there; `member` if None.
            fitted: to the new members together.

        Raises:
            EnsembleNotFound, NotReady: nothing serves under the name.
            InvalidRequest: this server keeps no bundles of its own.
            Conflict: the ensemble was changed meanwhile.
            BundleError: the member cannot be had, or does not fit; what served before serves on.
        """
        donor = await read_source(source, self._resolve)
        return await self._edit(
            name, lambda base, target: put_member(base, target, member, donor, source_member or member, fitted)
        )

    async def remove(self, name: str, member: str, fitted: Fitted) -> Ensemble:
        """Serve `name` without `member`; see `put` for what is raised."""
        return await self._edit(name, lambda base, target: remove_member(base, target, member, fitted))

    async def _edit(self, name: str, edit: Edit) -> Ensemble:
        if self._folder is None:
            raise InvalidRequest(
                "a changed ensemble is a new bundle, which has to be kept: start the server with --state"
            )
        async with self._turn:
            before = self._reconciler.registry.get(name)
            target = self._folder / f"{name}-{uuid.uuid4().hex[:12]}"
            await asyncio.to_thread(_write, before, target, edit)
            if self._reconciler.registry.get(name) is not before:
                shutil.rmtree(target, ignore_errors=True)  # it serves nowhere, and nobody else knows of it
                raise Conflict(f"'{name}' was changed while its members were")
            after = await self._reconciler.put(name, str(target))
            assert after is not None
            return after


def _write(before: Ensemble, target: Path, edit: Edit) -> None:
    base = read_bundle(before.path)
    if base.version != before.version:
        raise BundleError(f"the bundle that serves is not what it was: it has become version {base.version}")
    target.parent.mkdir(exist_ok=True)
    edit(base, target)
