"""Engines without a model: scores that are simple arithmetic on the token ids, so that tests can predict them.

`FakeEngine` lives in the test's own process; `load_fake_scorer` is a loader for the real child process.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quorum_client.errors import QuorumError
from quorum_model.bundle.read import read_bundle
from quorum_server.engine.messages import Loaded, Scores, TokenIds
from quorum_server.loading import load_ensemble
from quorum_server.registry import Ensemble

CRASH_ID = 5
"""A token id at which the fake scorer ends its process, as a segmentation fault would."""
RAISE_ID = 6
"""A token id at which the fake scorer raises."""
NAN_ID = 7
"""A token id that makes the first member's score NaN."""
HANG_ID = 8
"""A token id at which the fake scorer never returns."""

OUT_OF_MEMORY_ID = 3
"""A token id with which the fake scorer has memory for two sequences only."""
DEVICE_ERROR_ID = 4
"""A token id at which the fake scorer raises what torch does when a CUDA device is beyond use."""


def fake_raw(sequences: Sequence[Sequence[int]], num_members: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """raw[k, b] = (k + 1) * sum(ids of b) mod 97, shape (K, B): each member and each sequence has its own number."""
    raw = np.array(
        [[(k + 1) * sum(int(i) for i in ids) % 97 for ids in sequences] for k in range(num_members)], dtype=np.float32
    )
    for column, ids in enumerate(sequences):
        if NAN_ID in ids:
            raw[0, column] = np.nan
    return raw


class FakeEngine:
    """An engine of the test's own process, which records its passes and can be held or made to fail.

    As the scheduler sees it, and as a supervisor does.
    """

    has_failed = False
    pid = os.getpid()

    def __init__(self, num_members: int = 3) -> None:
        self.num_members = num_members
        self.members: dict[str, int] = {}
        self.passes: list[list[list[int]]] = []
        self.versions: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.has_begun = asyncio.Event()
        self.ended = asyncio.Event()
        self.error: Exception | None = None
        self.is_alive = False
        self.is_ready = True
        self.under_way = self.most_under_way = 0

    async def start(self) -> None:
        self.is_alive = True

    async def stop(self) -> None:
        self.is_alive = False

    def kill(self) -> None:
        self.is_alive = False
        self.ended.set()

    async def wait_ended(self) -> None:
        await self.ended.wait()

    async def ping(self) -> None: ...

    async def load(self, path: Path, *, device: str, dtype: str, token_budget: int | None) -> Loaded:
        bundle = read_bundle(path)
        self.num_members = len(bundle.manifest.members)
        self.members[bundle.version] = self.num_members
        return Loaded(0, bundle.version, self.num_members, "cpu", "float32", "packed", token_budget or 8192, False)

    async def unload(self, version: str) -> None:
        self.members.pop(version, None)

    async def score(self, version: str, sequences: Sequence[TokenIds]) -> Scores:
        ids = [sequence.tolist() for sequence in sequences]
        self.passes.append(ids)
        self.versions.append(version)
        self.has_begun.set()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        if any(RAISE_ID in sequence for sequence in ids):
            raise ValueError("the fake engine was told to fail")
        return Scores(0, fake_raw(ids, self.members.get(version, self.num_members)), sum(map(len, ids)))


class FakePool:
    """A pool of one engine that needs no supervision."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.gate = asyncio.Event()
        self.gate.set()
        self.has_begun = asyncio.Event()
        self.num_loads = 0
        self.gone: dict[str, QuorumError] = {}

    def missing(self, version: str) -> QuorumError | None:
        return self.gone.get(version)

    async def load(self, path: Path) -> Loaded:
        self.num_loads += 1
        self.has_begun.set()
        await self.gate.wait()
        return await self.engine.load(path, device="cpu", dtype="auto", token_budget=64)

    async def unload(self, version: str) -> None:
        await self.engine.unload(version)


async def load_with_fake(path: Path, name: str = "tiny") -> Ensemble:
    return await load_ensemble(name, str(path), read_bundle(path), FakePool())


@dataclass
class _RawScores:
    raw: np.ndarray[Any, np.dtype[np.float32]]
    computed_tokens: int


class AcceleratorError(RuntimeError):
    """By its name, torch's."""


class FakeScorer:
    """What the real child process runs in tests."""

    device = "cpu"
    dtype = "float32"
    attention = "packed"
    token_budget = 8192
    shares_prefixes = False

    def __init__(self, num_members: int) -> None:
        self.num_members = num_members

    def score(self, sequences: list[list[int]]) -> _RawScores:
        ids = {token_id for sequence in sequences for token_id in sequence}
        if CRASH_ID in ids:
            os._exit(3)
        if HANG_ID in ids:
            threading.Event().wait()
        if RAISE_ID in ids:
            raise ValueError("the fake engine was told to fail")
        if DEVICE_ERROR_ID in ids:
            raise AcceleratorError("planted")
        if OUT_OF_MEMORY_ID in ids and len(sequences) > 2:
            raise MemoryError("planted")
        return _RawScores(fake_raw(sequences, self.num_members), sum(map(len, sequences)))


def load_fake_scorer(bundle: Any, *, device: str, dtype: str, token_budget: int | None) -> FakeScorer:
    return FakeScorer(len(bundle.manifest.members))


def make_fake_loader() -> Any:
    return load_fake_scorer


FAKE_LOADER = "tests.server.fake_engine:make_fake_loader"


def load_thread_counter(bundle: Any, *, device: str, dtype: str, token_budget: int | None) -> FakeScorer:
    """A loader that shows, as its device, the number of threads that torch would read at its import, and if it did."""
    scorer = load_fake_scorer(bundle, device=device, dtype=dtype, token_budget=token_budget)
    scorer.device = f"threads={os.environ.get('OMP_NUM_THREADS')} torch={'torch' in sys.modules}"
    return scorer


_tried = itertools.count(700)


def load_with_trial(bundle: Any, *, device: str, dtype: str, token_budget: int | None) -> FakeScorer:
    """A loader whose every trial finds another budget."""
    scorer = load_fake_scorer(bundle, device=device, dtype=dtype, token_budget=token_budget)
    scorer.token_budget = token_budget or next(_tried)
    return scorer


class UnreadableScorer(FakeScorer):
    """Its answer cannot be put together again at the other end."""

    def score(self, sequences: list[list[int]]) -> _RawScores:
        return _RawScores(_Unreadable(), 0)  # type: ignore[arg-type]


class _Unreadable:
    def __reduce__(self) -> Any:
        return int, ("no number",)


def load_unreadable_scorer(bundle: Any, *, device: str, dtype: str, token_budget: int | None) -> FakeScorer:
    return UnreadableScorer(len(bundle.manifest.members))


def load_logging_scorer(bundle: Any, *, device: str, dtype: str, token_budget: int | None) -> FakeScorer:
    """A loader that says something at two levels."""
    logging.getLogger("quorum_model").info("planted info")
    logging.getLogger("quorum_model").warning("planted warning")
    return load_fake_scorer(bundle, device=device, dtype=dtype, token_budget=token_budget)


def load_slowly(bundle: Any, *, device: str, dtype: str, token_budget: int | None) -> FakeScorer:
    """A loader that waits, for a bundle of the name slow, until a file `go` lies beside it."""
    if bundle.manifest.name == "slow":
        (bundle.path.parent / "waits").touch()
    while bundle.manifest.name == "slow" and not (bundle.path.parent / "go").exists():
        time.sleep(0.01)
    return load_fake_scorer(bundle, device=device, dtype=dtype, token_budget=token_budget)


def make_load_thread_counter() -> Any:
    return load_thread_counter


def make_load_with_trial() -> Any:
    return load_with_trial


def make_load_unreadable_scorer() -> Any:
    return load_unreadable_scorer


def make_load_logging_scorer() -> Any:
    return load_logging_scorer


def make_load_slowly() -> Any:
    return load_slowly


class OutOfMemoryError(RuntimeError):
    """By its name, torch's."""


def make_load_without_room() -> Any:
    def load(bundle: Any, **_: Any) -> FakeScorer:
        raise OutOfMemoryError("planted")

    return load
