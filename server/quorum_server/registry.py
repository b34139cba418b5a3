"""The ensembles that are loaded: name -> everything that a request needs to know of one.

    Ensemble  --put-->  Registry  --use("name@version")-->  a request

Ensembles are immutable: a request holds on to the one it got, and so finishes on the version it started with; the last
one to let go of a version that serves no more sets it free. Knows nothing of loading, HTTP, queues or weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quorum_client.errors import EnsembleNotFound, InvalidRequest, NotReady
from quorum_client.modes import resolve_beta
from quorum_client.types import EnsembleInfo, MemberInfo
from quorum_model.bundle.manifest import Manifest
from quorum_model.scoring import ScoringContext
from quorum_server.engine.messages import Loaded


@dataclass(frozen=True, slots=True)
class Ensemble:
    """A loaded ensemble.

    source: as it was named. path: the bundle's folder. context: its manifest has the name that it serves under, which
    may not be the bundle's own. loaded: the engine's word on it. created_s: Unix time of loading.
    """

    source: str
    path: Path
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
            std_quantiles={} if manifest.reference_stats is None else manifest.reference_stats.std_quantiles,
        )


class Registry:
    """The ensembles that serve, by name, and who still uses which version.

    Args:
        on_idle: called with a version that serves under no name any more and that no request uses: it can be freed.
    """

    def __init__(self, on_idle: Callable[[str], None]) -> None:
        self._on_idle = on_idle
        self._ensembles: dict[str, Ensemble] = {}
        self._num_uses: Counter[str] = Counter()

    def put(self, ensemble: Ensemble) -> None:
        """Serve `ensemble` under its name from now on; requests that hold the one before finish with that one."""
        before = self._ensembles.get(ensemble.name)
        self._ensembles[ensemble.name] = ensemble
        if before is not None:
            self._free(before.version)

    def remove(self, name: str) -> None:
        """Serve nothing under this name from now on; nothing happens where nothing is."""
        before = self._ensembles.pop(name, None)
        if before is not None:
            self._free(before.version)

    @contextmanager
    def use(self, reference: str | None) -> Iterator[Ensemble]:
        """Hold on to an ensemble, whatever is put in its place meanwhile; see `get`."""
        ensemble = self.get(reference)
        self._num_uses[ensemble.version] += 1
        try:
            yield ensemble
        finally:
            self._num_uses[ensemble.version] -= 1
            self._free(ensemble.version)

    def is_used(self, version: str) -> bool:
        """Whether a version serves, under any name, or a request still holds on to it."""
        return self._num_uses[version] > 0 or self.find(version) is not None

    def find(self, version: str) -> Ensemble | None:
        """An ensemble that serves with this version, under whatever name."""
        return next((one for one in self._ensembles.values() if one.version == version), None)

    def _free(self, version: str) -> None:
        if self.is_used(version):
            return
        del self._num_uses[version]
        self._on_idle(version)

    def check_any(self) -> None:
        """Raise `NotReady` where nothing serves."""
        if not self._ensembles:
            raise NotReady("no ensemble is loaded")

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
        self.check_any()
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
