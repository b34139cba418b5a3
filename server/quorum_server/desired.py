"""What this server is to serve: a small file, name -> source, that restarts read and every change rewrites.

    StateFile.read  -->  {name: Desired}  --change-->  StateFile.write: beside it, fsync, rename

Half a file is never seen. Knows nothing of loading.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
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
    that what it refers to must lie in the allowed folders, after a restart too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    last_good: str | None = None
    by_request: bool = False


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

    def write(self, ensembles: Mapping[str, Desired]) -> None:
        """Have it say this; on the disk when it returns.

        Raises:
            StateNotWritten: the file is as it was.
        """
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
