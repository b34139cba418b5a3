"""The ensembles that are loaded: name -> everything that a request needs to know of one.

    source  --load_ensemble-->  Ensemble  --Registry-->  get("name@version")

Ensembles are immutable: a request holds on to the one it got, and so finishes on the version it started with.
Knows nothing of HTTP, queues or weights (the engine holds those).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from quorum_client.errors import EnsembleNotFound, InvalidRequest, NotReady
from quorum_client.modes import resolve_beta
from quorum_client.types import EnsembleInfo, MemberInfo, ScoreItem
from quorum_model.bundle.manifest import Manifest
from quorum_model.bundle.read import Bundle, read_bundle, resolve_bundle
from quorum_model.errors import BundleCorrupt
from quorum_model.scoring import ScoringContext
from quorum_server.engine.messages import Loaded


class LoadingEngine(Protocol):
    """What loading needs of an engine."""

    async def load(self, path: Path) -> Loaded:
        """Load a bundle and prove that it scores as it should; raises `BundleError`."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """A loaded ensemble. source: as it was named. loaded: the engine's word on it. created_s: Unix time of loading."""

    source: str
    context: ScoringContext
    loaded: Loaded
    created_s: int

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.context.manifest

    @property
    def name(self) -> str:
        """The name that requests ask for."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The bundle's version."""
        return self.context.version

    def info(self) -> EnsembleInfo:
        """As GET /v1/ensembles shows it."""
        manifest = self.manifest
        default_beta = resolve_beta(manifest.default_mode, manifest.default_beta)
        return EnsembleInfo(
            name=self.name,
            version=self.version,
            kind=manifest.kind,
            source=self.source,
            members=[
                MemberInfo(
                    name=member.name,
                    calibration_mean=member.calibration.mean,
                    calibration_scale=member.calibration.scale,
                )
                for member in manifest.members
            ],
            pooling=manifest.pooling,
            max_length=manifest.max_length,
            default_mode=manifest.default_mode,
            default_beta=default_beta,
            pair_temperature=manifest.pair_temperature,
            prompt_fingerprint=manifest.prompt_format.fingerprint,
            dtype=self.loaded.dtype,
            device=self.loaded.device,
            attention=self.loaded.attention,
            metrics=manifest.metrics,
        )


async def load_ensemble(source: str, engine: LoadingEngine) -> Ensemble:
    """Verify a bundle, load its tokenizer here and its weights in the engine.

    Args:
        source: a folder, a hub id, or "default".
        engine: takes the weights.

    Raises:
        BundleError: the bundle cannot be used, and why.
    """
    bundle = await asyncio.to_thread(_read, source)
    context, loaded = await asyncio.gather(
        asyncio.to_thread(_make_context, bundle),
        engine.load(bundle.path),
    )
    if loaded.version != bundle.version:
        raise BundleCorrupt(f"{source} changed while it was loaded: {bundle.version} became {loaded.version}")
    return Ensemble(source, context, loaded, int(time.time()))


def _read(source: str) -> Bundle:
    return read_bundle(resolve_bundle(source))


def _make_context(bundle: Bundle) -> ScoringContext:
    # Imported here and not above: the tokenizer's libraries take seconds to import, and meanwhile the engine, started
    # before, imports its own, and the server already answers /healthz.
    from quorum_model.prompts import load_prompt_encoder

    encoder = load_prompt_encoder(bundle)
    # The first encoding settles the tokenizer's own truncation and padding; afterwards threads may share it.
    encoder.encode(ScoreItem(text="a"))
    return ScoringContext(bundle.manifest, bundle.version, encoder)


class Registry:
    """The loaded ensembles by name."""

    def __init__(self) -> None:
        self._ensembles: dict[str, Ensemble] = {}

    def put(self, ensemble: Ensemble) -> None:
        """Serve `ensemble` under its name from now on."""
        self._ensembles[ensemble.name] = ensemble

    def list(self) -> list[Ensemble]:
        """All of them, by name."""
        return [self._ensembles[name] for name in sorted(self._ensembles)]

    def get(self, reference: str | None) -> Ensemble:
        """The ensemble that a request means.

        Args:
            reference: `name`, `name@version`, or None for the only one loaded.

        Raises:
            NotReady: none is loaded yet.
            EnsembleNotFound: no such name, or another version of it.
            InvalidRequest: None, where there are several.
        """
        if not self._ensembles:
            raise NotReady("no ensemble is loaded yet")
        if reference is None:
            if len(self._ensembles) > 1:
                raise InvalidRequest("several ensembles are loaded: name one under 'ensemble'")
            return next(iter(self._ensembles.values()))
        name, at, version = reference.partition("@")
        ensemble = self._ensembles.get(name)
        if ensemble is None:
            raise EnsembleNotFound("no ensemble of this name is loaded; GET /v1/ensembles lists them")
        if at and version != ensemble.version:
            raise EnsembleNotFound(f"this version of '{ensemble.name}' is not loaded; {ensemble.version} is")
        return ensemble
