"""What crosses the pipe between the server and its engine process.

    server  --Load, Unload, Score, Ping, Stop-->  engine
    server  <--Loaded, Done, Scores, Failed--  engine

Plain data: numbers and short strings, never text of a user. Knows no torch and no HTTP.

Shapes: `K` members, `B` sequences, `T` tokens of all sequences together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quorum_client.errors import NotReady

TokenIds = NDArray[np.int32]
"""Token ids of one sequence, shape (its length,)."""


@dataclass(frozen=True, slots=True)
class Load:
    """Load the bundle in the folder `path` beside what is loaded already. token_budget: None tries what is fastest."""

    job_id: int
    path: str
    device: str
    dtype: str
    token_budget: int | None


@dataclass(frozen=True, slots=True)
class Unload:
    """Free a loaded version; answered with Done, also where it is not loaded."""

    job_id: int
    version: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer with Done when everything asked before is answered."""

    job_id: int


@dataclass(frozen=True, slots=True)
class Done:
    """An Unload or a Ping was done."""

    job_id: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A bundle is loaded and has passed its self-test.

    num_members: K. token_budget: most tokens in a pass. shares_prefixes: whether a pass computes what its sequences
    begin with in common once.
    """

    job_id: int
    version: str
    num_members: int
    device: str
    dtype: str
    attention: str
    token_budget: int
    shares_prefixes: bool


@dataclass(frozen=True, slots=True)
class Score:
    """Score B sequences with a loaded version. token_ids: int32 (T,), end to end; lengths: int32 (B,)."""

    job_id: int
    version: str
    token_ids: NDArray[np.int32]
    lengths: NDArray[np.int32]

    @classmethod
    def pack(cls, job_id: int, version: str, sequences: Sequence[TokenIds]) -> Score:
        """Lay sequences end to end: two arrays cross the pipe faster than thousands of small ones."""
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int32)
        return cls(job_id, version, np.concatenate(sequences), lengths)

    def unpack(self) -> list[list[int]]:
        """The B sequences."""
        ends = np.cumsum(self.lengths)
        return [part.tolist() for part in np.split(self.token_ids, ends[:-1])]


@dataclass(frozen=True, slots=True)
class Stop:
    """End: nothing more will be asked."""


@dataclass(frozen=True, slots=True)
class Scores:
    """raw: float32 (K, B), before calibration, in the order sent. computed_tokens: tokens that went through."""

    job_id: int
    raw: NDArray[np.float32]
    computed_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A Load or Score that failed. code: of the error, `internal_error` where it is a defect."""

    job_id: int
    code: str
    message: str


Request = Load | Unload | Score | Ping
Answer = Loaded | Done | Scores | Failed


class EngineLost(NotReady):
    """The engine ended or hung before it answered: another one, or its successor, may still answer."""
