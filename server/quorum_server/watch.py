"""A watched folder: the newest bundle of each name in it is to serve.

    DIR/*/manifest.json  --scan-->  {name: newest first}  --look, every few seconds-->  Reconciler.watched

A bundle that is still being copied fails to load, and is tried again when it has changed. While a name serves nothing
yet, older bundles are tried too. A name whose bundles are gone serves on: an unmounted disk must not empty a server.
Knows nothing of loading.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from quorum_client.errors import QuorumError
from quorum_model.bundle.files import MANIFEST_NAME
from quorum_model.bundle.manifest import NAME_PATTERN
from quorum_server.reconciler import Reconciler

logger = logging.getLogger(__name__)

_NAME = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class Found:
    """A bundle's folder. stamp: time of its manifest, then what tells a changed folder from an unchanged one."""

    path: Path
    stamp: tuple[int, ...]


def scan(folder: Path) -> dict[str, list[Found]]:
    """The bundles of each name, newest first by the time of their manifest.json; of equal ones the later folder name.

    Only looked at, not verified. Hidden folders, such as half-written bundles, are passed over.
    """
    found: dict[str, list[Found]] = {}
    for path in sorted(folder.iterdir(), reverse=True):
        if path.name.startswith("."):
            continue
        try:
            name = json.loads((path / MANIFEST_NAME).read_bytes()).get("name")
            one = Found(path, ((path / MANIFEST_NAME).stat().st_mtime_ns, *_stamp(path)))
        except (OSError, ValueError, AttributeError):
            continue  # no bundle, or one that is being written
        if isinstance(name, str) and _NAME.fullmatch(name):
            found.setdefault(name, []).append(one)
    return {name: sorted(some, key=lambda one: one.stamp[0], reverse=True) for name, some in found.items()}


def _stamp(folder: Path) -> tuple[int, int, int]:
    """(files, bytes, newest time) of a folder."""
    stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return len(stats), sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)


class Watcher:
    """Follows a folder.

    Args:
        folder: to watch.
        reconciler: is told what is to serve.
        interval_s: between looks.
    """

    def __init__(self, folder: Path, reconciler: Reconciler, interval_s: float) -> None:
        self._folder = folder
        self._reconciler = reconciler
        self._interval_s = interval_s
        self._seen: dict[str, Found] = {}

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """Load what is new, or what has changed."""
        try:
            found = await asyncio.to_thread(scan, self._folder)
        except OSError as error:
            logger.error("the watched folder %s cannot be read: %s", self._folder, error.strerror)
            return
        for name, bundles in found.items():
            if self._seen.get(name) == bundles[0]:
                continue
            self._seen[name] = bundles[0]
            for bundle in bundles:
                if await self._follow(name, bundle) or self._reconciler.serves(name):
                    break

    async def _follow(self, name: str, bundle: Found) -> bool:
        try:
            await self._reconciler.watched(name, bundle.path)
        except QuorumError:
            return False  # it is in the status and in the log
        return True
