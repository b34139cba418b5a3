"""What this server is to serve: a small file, name -> source, that restarts read and every change rewrites.

    StateFile.read  -->  {name: Desired}  --edit: under a lock, beside it, fsync, rename-->  StateFile

Half a file is never seen, and no change of another server that shares the file is lost. Knows nothing of loading.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quorum_client.errors import QuorumError
from quorum_model.bundle.manifest import NAME_PATTERN
from quorum_model.bundle.write import sync_entry

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class StateNotWritten(QuorumError):
    """The state file cannot be written: nothing has changed."""

    code = "state_not_written"
    status = 503
    retryable = True


class StateUnreadable(QuorumError):
    """The state file is there and cannot be used: starting without it would serve something else."""

    code = "state_unreadable"


class Desired(BaseModel):
    """What is to serve under a name.

    last_good: what served last, for a restart at which `source` cannot be loaded. by_request: a request named it, so
    that what it refers to must lie in the allowed folders, after a restart too. change: which one said so: a later one
    may name the same source, which has changed itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    last_good: str | None = None
    by_request: bool = False
    change: str = ""


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    ensembles: dict[Name, Desired]


class StateFile:
    """The file.

    Args:
        path: its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def read(self) -> dict[str, Desired] | None:
        """What it says; None where there is no file yet.

        Raises:
            StateUnreadable: it is there and cannot be used.
        """
        try:
            return _State.model_validate_json(self.path.read_bytes()).ensembles
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateUnreadable(f"{self.path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            raise StateUnreadable(
                f"{self.path} is no state file: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            ) from error

    def edit(self, changes: Mapping[str, Desired | None], otherwise: Mapping[str, Desired]) -> None:
        """Change what it says of these names, and of no others; on the disk when it returns.

        Args:
            changes: None takes a name out.
            otherwise: what it says before the changes where there is no file.

        Raises:
            StateNotWritten: the file is as it was.
        """
        with self._locked():
            before = self.read()
            kept = dict(otherwise if before is None else before) | dict(changes)
            self._write({name: desired for name, desired in kept.items() if desired is not None})

    def settle(self, name: str, desired: Desired) -> None:
        """Keep a last good source, unless another change came in between.

        Raises:
            StateNotWritten: the file is as it was.
        """
        with self._locked():
            kept = self.read() or {}
            if name in kept and kept[name].change == desired.change and kept[name].source == desired.source:
                self._write(kept | {name: desired})

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the file, among all servers that share it."""
        try:
            descriptor = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StateNotWritten(f"the state file cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        except StateUnreadable as error:
            raise StateNotWritten(error.message) from error
        finally:
            os.close(descriptor)

    def _write(self, ensembles: Mapping[str, Desired]) -> None:
        text = _State(ensembles=dict(ensembles)).model_dump_json(indent=2) + "\n"
        beside: str | None = None
        try:
            descriptor, beside = tempfile.mkstemp(prefix=f".{self.path.name}-", dir=self.path.parent)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
            sync_entry(self.path.parent)
        except OSError as error:
            if beside is not None:
                with contextlib.suppress(OSError):
                    os.unlink(beside)
            raise StateNotWritten(f"the state file cannot be written: {error.strerror}") from error
