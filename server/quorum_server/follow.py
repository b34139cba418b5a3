"""A state file that several servers share: what one of them was told, the others serve too.

    StateFile, changed by another server  --look, every few seconds-->  Reconciler.adopt

Knows nothing of loading.
"""

from __future__ import annotations

import asyncio
import logging

from quorum_server.desired import StateFile, StateUnreadable
from quorum_server.reconciler import Reconciler

logger = logging.getLogger(__name__)

_RETRY_LOOKS = 12
"""What could not be loaded is tried again so many looks later: a shared disk may be behind."""


class StateFollower:
    """Follows the file.

    Args:
        file: that this server's own changes are written to as well.
        reconciler: is told what is to serve.
        interval_s: between looks.
    """

    def __init__(self, file: StateFile, reconciler: Reconciler, interval_s: float) -> None:
        self._file = file
        self._reconciler = reconciler
        self._interval_s = interval_s
        self._seen: tuple[int, int] | None = None
        self._looks_since = 0

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """Serve what the file says, where it has changed. A file that is gone or unreadable changes nothing."""
        self._looks_since += 1
        has_failed = any(status.state == "failed" for status in self._reconciler.statuses())
        try:
            stat = await asyncio.to_thread(self._file.path.stat)
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp == self._seen and not (has_failed and self._looks_since >= _RETRY_LOOKS):
                return
            kept = await asyncio.to_thread(self._file.read)
        except (OSError, StateUnreadable) as error:
            logger.error("the shared state file cannot be followed: %s", error)
            return
        self._seen, self._looks_since = stamp, 0
        if kept is not None:
            await self._reconciler.adopt(kept)
