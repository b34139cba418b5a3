"""What each name is to serve, and how far that is; what of it a restart must know is in the state file.

    keep, follow  -->  Wish by name  --StateFile, if there is one-->  settle

Knows nothing of loading.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quorum_client.errors import EnsembleNotFound, QuorumError
from quorum_server.desired import Desired, StateFile

logger = logging.getLogger(__name__)


class Conflict(QuorumError):
    """Another change, or a watched folder, decides what this name serves."""

    code = "conflict"
    status = 409


@dataclass(frozen=True, slots=True)
class Wish:
    """What a name is to serve. error: why it does not. is_watched: whether a watched folder says so."""

    desired: Desired
    is_watched: bool = False
    is_loading: bool = True
    error: QuorumError | None = None

    def is_settled(self, desired: Desired) -> bool:
        """Whether this is wished already, and did not fail."""
        own = self.desired
        return (own.source, own.change) == (desired.source, desired.change) and self.error is None


class Wishes:
    """All of them.

    Args:
        state: where they are kept; None keeps them as long as this process.
    """

    def __init__(self, state: StateFile | None) -> None:
        self._state = state
        self._by_name: dict[str, Wish] = {}

    def names(self) -> list[str]:
        """All names."""
        return sorted(self._by_name)

    def find(self, name: str) -> Wish | None:
        """The wish for a name, if there is one."""
        return self._by_name.get(name)

    def get(self, name: str) -> Wish:
        """The wish for a name.

        Raises:
            EnsembleNotFound: there is none.
        """
        if name not in self._by_name:
            raise EnsembleNotFound("no ensemble of this name is desired here; GET /v1/ensembles lists them")
        return self._by_name[name]

    def read(self) -> dict[str, Desired] | None:
        """What the state file says; None for no file.

        Raises:
            StateUnreadable: it cannot be used.
        """
        return self._state.read() if self._state else None

    def keep(self, changes: Mapping[str, Wish | None]) -> None:
        """Have the state file say this, and only then wish it. None: nothing under this name.

        Raises:
            StateNotWritten: nothing has changed.
        """
        if self._state is not None:
            # What a watched folder says is read from there again.
            kept = {name: wish.desired for name, wish in self._by_name.items() if not wish.is_watched}
            self._state.edit({n: None if wish is None else wish.desired for n, wish in changes.items()}, otherwise=kept)
        for name, wish in changes.items():
            self.follow(name, wish)

    def follow(self, name: str, wish: Wish | None) -> None:
        """Wish what is kept elsewhere: in a watched folder, or by another server in the same file."""
        if wish is None:
            self._by_name.pop(name, None)
        else:
            self._by_name[name] = wish

    def settle(self, name: str, wish: Wish, settled: Wish) -> None:
        """A wish has an outcome, unless another one has taken its place."""
        if self._by_name.get(name) is not wish:
            return
        self._by_name[name] = settled
        if self._state is None:
            return
        try:
            if settled.is_watched:
                self._state.edit({name: None}, otherwise={})
            else:
                self._state.settle(name, settled.desired)
        except QuorumError as error:  # it names the right source already; only the last good one is out of date
            logger.error("%s", error.message)

    def refuse_watched(self, name: str) -> None:
        """Raise `Conflict` where a watched folder decides."""
        wish = self._by_name.get(name)
        if wish is not None and wish.is_watched:
            raise Conflict(f"what '{name}' serves is decided by the watched folder: put a bundle there")

    def followed(self) -> Iterable[str]:
        """Names that no watched folder decides."""
        return [name for name, wish in self._by_name.items() if not wish.is_watched]
