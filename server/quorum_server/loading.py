"""From a bundle to an ensemble that can serve: the tokenizer here, the weights in every engine.

    source  --read_source-->  Bundle  --load_ensemble-->  Ensemble

All or nothing: what fails leaves no weights behind. Knows nothing of what serves already, of HTTP or queues.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from quorum_client.errors import QuorumError
from quorum_client.types import ScoreItem
from quorum_model.bundle.read import Bundle, read_bundle
from quorum_model.errors import BundleCorrupt
from quorum_model.scoring import ScoringContext
from quorum_server.engine.messages import EngineLost, Loaded
from quorum_server.registry import Ensemble

Resolve = Callable[[str], Path]
"""Finds a bundle's folder by its source: a folder, a hub id, or "default"; raises `BundleError`."""


class LoadingEngine(Protocol):
    """What loading needs of the engines."""

    async def load(self, path: Path) -> Loaded:
        """Load a bundle beside what is loaded, and prove that it scores as it should; raises `BundleError`."""

    async def unload(self, version: str) -> None:
        """Free a version."""

    def missing(self, version: str) -> QuorumError | None:
        """Why a version that was loaded could not be loaded again after a restart; None where it is there."""


async def read_source(source: str, resolve: Resolve) -> Bundle:
    """Find and verify a bundle.

    Raises:
        BundleError: there is none, or it cannot be used, and why.
    """
    return await asyncio.to_thread(lambda: read_bundle(resolve(source)))


async def load_ensemble(
    name: str, source: str, bundle: Bundle, engine: LoadingEngine, loaded: Loaded | None = None
) -> Ensemble:
    """Make a bundle ready to serve.

    Args:
        name: what it is to serve under.
        source: as it was named.
        bundle: see `read_source`.
        engine: takes the weights.
        loaded: the engine's word, where it holds this version already.

    Raises:
        BundleError: the bundle cannot be used, and why.
        NotReady: engines were lost twice meanwhile, or cannot be started.
    """
    held_before = loaded is not None
    making = asyncio.to_thread(_make_context, name, bundle)
    loading = _hold(loaded) if loaded is not None else _load(bundle, engine)
    context, now = await asyncio.gather(making, loading, return_exceptions=True)
    if isinstance(now, BaseException):
        raise now
    error = context if isinstance(context, BaseException) else None
    if now.version != bundle.version:
        error = BundleCorrupt(f"{source} changed while it was loaded: {bundle.version} became {now.version}")
    if error is not None:
        if not held_before:
            await engine.unload(now.version)
        raise error
    assert isinstance(context, ScoringContext)
    return Ensemble(source, bundle.path, context, now, int(time.time()))


async def _hold(loaded: Loaded) -> Loaded:
    return loaded


async def _load(bundle: Bundle, engine: LoadingEngine) -> Loaded:
    try:
        return await engine.load(bundle.path)
    except EngineLost:
        return await engine.load(bundle.path)  # in its successor; a bundle that ends that one too is at fault


def _make_context(name: str, bundle: Bundle) -> ScoringContext:
    # Imported here and not above: the tokenizer's libraries take seconds to import, and meanwhile the engine, started
    # before, imports its own, and the server already answers /healthz.
    from quorum_model.prompts import load_prompt_encoder

    encoder = load_prompt_encoder(bundle)
    # The first encoding settles the tokenizer's own truncation and padding; afterwards threads may share it.
    encoder.encode(ScoreItem(text="a"))
    return ScoringContext(bundle.manifest.model_copy(update={"name": name}), bundle.version, encoder)
