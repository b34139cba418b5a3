"""One way for every change of what serves: the desired state is edited, then what serves follows it.

    put, remove, watched, adopt, restore  -->  desired: name -> source  --load beside, swap in one step-->  Registry
                                              '-- StateFile                      '-- free the old --'

One change at a time; a source that cannot be loaded leaves serving what served, and its error is shown. Knows nothing
of HTTP, queues or weights.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from quorum_client.ensemble_types import EnsembleStatus
from quorum_client.errors import InternalError, InvalidRequest, QuorumError
from quorum_client.types import ItemError
from quorum_model.bundle.read import Bundle
from quorum_server.allowed_sources import check_backbone
from quorum_server.desired import Desired, StateFile
from quorum_server.events import Observer
from quorum_server.loading import LoadingEngine, Resolve, load_ensemble, read_source
from quorum_server.registry import Ensemble, Registry
from quorum_server.wishes import Conflict, Wish, Wishes

logger = logging.getLogger(__name__)

_Outcome = TypeVar("_Outcome")


class Reconciler:
    """Makes the registry follow the desired state.

    Args:
        engine: takes the weights.
        resolve: finds bundles.
        state: where the desired state is kept; None keeps it as long as this process.
        observer: is told of every swap.
        roots: folders that requests may load from.
    """

    def __init__(
        self,
        engine: LoadingEngine,
        resolve: Resolve,
        state: StateFile | None = None,
        observer: Observer | None = None,
        roots: Sequence[Path] = (),
    ) -> None:
        self._engine = engine
        self._roots = roots
        self._resolve = resolve
        self._observer = observer or Observer()
        self._wishes = Wishes(state)
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.registry = Registry(self._free_when_idle)

    def statuses(self) -> list[EnsembleStatus]:
        """Desired and actual, by name."""
        return [self.status(name) for name in self._wishes.names()]

    def status(self, name: str) -> EnsembleStatus:
        """Desired and actual of one name.

        Raises:
            EnsembleNotFound: nothing is desired under it.
        """
        wish = self._wishes.get(name)
        serving = self._serving(name)
        # What was served is not there any more: an engine was restarted, and the bundle is not what it was.
        error = wish.error or (self._engine.missing(serving.version) if serving else None)
        return EnsembleStatus(
            name=name,
            source=wish.desired.source,
            state="failed" if error else "loading" if wish.is_loading else "serving",
            version=serving.version if serving else None,
            error=ItemError(code=error.code, message=error.message) if error else None,
        )

    def serves(self, name: str) -> bool:
        """Whether anything serves under this name."""
        return self._serving(name) is not None

    async def restore(self, sources: Sequence[str]) -> None:
        """Load what the state file says; where there is none yet, `sources`, each under its bundle's own name.

        After a restart a name whose source cannot be loaded serves its last good one.

        Raises:
            QuorumError: a source cannot be loaded, or nothing of the state file can.
        """
        kept = self._wishes.read()
        if kept is None:
            await self._seed(sources)
            return
        logger.info("what serves is read from the state file; the bundles of the command line are for its first start")
        for name, desired in kept.items():
            self._wishes.follow(name, Wish(desired))
        errors = [error for name in kept if (error := await self._restore_one(name)) is not None]
        if errors and not self.registry.list():
            raise errors[0]

    async def _seed(self, sources: Sequence[str]) -> None:
        bundles = [await read_source(source, self._resolve) for source in sources]
        wishes = {
            bundle.manifest.name: Wish(Desired(source=_durable(source)))
            for source, bundle in zip(sources, bundles, strict=True)
        }
        if len(wishes) < len(sources):
            raise InvalidRequest("two of the bundles have the same name")
        self._wishes.keep(wishes)
        for (name, wish), bundle in zip(wishes.items(), bundles, strict=True):
            await self._follow(name, wish, bundle)

    async def _restore_one(self, name: str) -> QuorumError | None:
        wish = self._wishes.get(name)
        try:
            await self._follow(name, wish)
        except QuorumError as error:
            good = wish.desired.last_good
            if isinstance(error, Conflict):
                return None  # somebody has changed it meanwhile
            if good is None or good == wish.desired.source:
                return error
            try:
                logger.warning("'%s' serves its last good source, %s", name, good)
                self.registry.put(await self._load(name, wish.desired.model_copy(update={"source": good})))
            except QuorumError as older:
                logger.error("'%s': nor can its last good source be loaded: %s", name, older.message)
                return error
        return None

    async def put(self, name: str, source: str, *, wait: bool = True, by_request: bool = False) -> Ensemble | None:
        """Serve `source` under `name`; see the module's text.

        Args:
            name: of the ensemble.
            source: a folder, a hub id, or "default".
            wait: for the swap; else it goes on in the background, and None is returned.
            by_request: see `Desired`; `source` itself is allowed.

        Raises:
            Conflict: a watched folder decides, or a later change came before this one's turn.
            StateNotWritten: nothing has changed.
            BundleError: the bundle cannot be used; what served before serves on.
        """
        self._wishes.refuse_watched(name)
        before = self._wishes.find(name)
        last_good = before.desired.last_good if before else None
        desired = Desired(
            source=_durable(source), last_good=last_good, by_request=by_request, change=uuid.uuid4().hex[:12]
        )
        wish = Wish(desired)
        self._wishes.keep({name: wish})
        change = self._start(self._follow(name, wish))
        # A caller that leaves does not undo the change.
        return await asyncio.shield(change) if wait else None

    def remove(self, name: str) -> None:
        """Serve nothing under `name` any more; requests under way finish.

        Raises:
            EnsembleNotFound: nothing is desired under it.
            Conflict: a watched folder decides.
            StateNotWritten: nothing has changed.
        """
        self._wishes.get(name)
        self._wishes.refuse_watched(name)
        self._wishes.keep({name: None})
        self.registry.remove(name)

    async def watched(self, name: str, path: Path) -> None:
        """Serve the bundle in `path` under `name`, as a watched folder says.

        Raises:
            BundleError: the bundle cannot be used; what served before serves on.
        """
        wish = Wish(Desired(source=str(path)), is_watched=True)
        self._wishes.follow(name, wish)
        await self._follow(name, wish)

    async def adopt(self, kept: Mapping[str, Desired]) -> None:
        """Serve what a state file says that other servers write too; what cannot be loaded is in the status.

        Args:
            kept: the whole of it. What a watched folder decides is left alone.
        """
        for name in self._wishes.followed():
            if name not in kept:
                self._wishes.follow(name, None)
                self.registry.remove(name)
        for name, desired in kept.items():
            wish = self._wishes.find(name)
            if wish is None or not (wish.is_watched or wish.is_settled(desired)):
                wish = Wish(desired)
                self._wishes.follow(name, wish)
                with suppress(QuorumError):
                    await self._follow(name, wish)

    async def stop(self) -> None:
        """Leave changes that are under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, name: str, wish: Wish, bundle: Bundle | None = None) -> Ensemble:
        """Load what is wished and swap it in, in its turn."""
        async with self._turn:
            if self._wishes.find(name) is not wish:
                raise Conflict(f"a later change of '{name}' came before this one's turn")
            started_s = time.monotonic()
            try:
                ensemble = await self._load(name, wish.desired, bundle)
            except Exception as error:
                ours = error if isinstance(error, QuorumError) else InternalError(f"{type(error).__name__}: {error}")
                self._wishes.settle(name, wish, replace(wish, is_loading=False, error=ours))
                self._observer.swap_finished(name, None, time.monotonic() - started_s, ours.code)
                logger.error("'%s' cannot serve %s: %s: %s", name, wish.desired.source, ours.code, ours.message,
                             exc_info=error if ours is not error else None)  # fmt: skip
                raise ours from error
            if self._wishes.find(name) is not wish:
                self._free_when_idle(ensemble.version)
                raise Conflict(f"'{name}' was changed again while this was loaded")
            self.registry.put(ensemble)
            desired = wish.desired.model_copy(update={"last_good": wish.desired.source})
            self._wishes.settle(name, wish, replace(wish, desired=desired, is_loading=False))
            elapsed_s = time.monotonic() - started_s
            self._observer.swap_finished(name, ensemble.version, elapsed_s, None)
            logger.info("'%s' serves version %s after %.1f s", name, ensemble.version, elapsed_s)
            return ensemble

    async def _load(self, name: str, desired: Desired, bundle: Bundle | None = None) -> Ensemble:
        source = desired.source
        bundle = bundle or await read_source(source, self._resolve)
        if desired.by_request:
            in_use = {one.manifest.backbone.source for one in self.registry.list()}
            check_backbone(bundle, self._roots, in_use)
        same = self.registry.find(bundle.version)
        return await load_ensemble(name, source, bundle, self._engine, same.loaded if same else None)

    def _free_when_idle(self, version: str) -> None:
        """Free a version's weights, in its turn, unless it serves again by then."""

        async def free() -> None:
            async with self._turn:
                if not self.registry.is_used(version):
                    await self._engine.unload(version)

        self._start(free())

    def _start(self, work: Coroutine[Any, Any, _Outcome]) -> asyncio.Task[_Outcome]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # An outcome that nobody waits for is in the status and in the log.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def _serving(self, name: str) -> Ensemble | None:
        return next((ensemble for ensemble in self.registry.list() if ensemble.name == name), None)


def _durable(source: str) -> str:
    """A folder by its absolute path: a restart may have another working directory."""
    path = Path(source).expanduser()
    return str(path.absolute()) if path.is_dir() else source
