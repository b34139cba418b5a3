"""Who competes in `quorum bench score`, and over what.

    Task  --enter-->  Contest: contestants by name, each scoring the same token ids; and why others are missing

Each is built as a user would: the engine from a bundle, self-test and all; PEFT from adapters on disk; vLLM from a
merged checkpoint. Knows no time and no output.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quorum_model.benchmark.padded import PaddedPeft
from quorum_model.benchmark.padding_free import PaddingFreePeft
from quorum_model.benchmark.random_ensemble import BenchKind, Layers, RandomEnsemble, draw_ensemble
from quorum_model.benchmark.score_result import RATIOS
from quorum_model.benchmark.vllm_peer import VllmPeer
from quorum_model.bundle.read import Bundle
from quorum_model.errors import PeerFailed
from quorum_model.loading import DTYPES, load_member_scorer
from quorum_model.member_scorer import MemberScorer

Scores = NDArray[np.float32]
Run = Callable[[], Scores]
"""Scores every sequence; raw (K, B), or (1, B) of the first member."""


@dataclass(frozen=True, slots=True)
class Task:
    """What everyone computes: the scores of K members of one kind, of the same token ids.

    dtype: of the engine; float32 or bfloat16. vllm_python: interpreter of an environment with vLLM, if it competes.
    """

    backbone: Path
    kind: BenchKind
    members: int
    rank: int
    layers: Layers
    dtype: str
    device: torch.device
    sequences: list[list[int]]
    max_length: int
    vllm_python: Path | None = None

    @property
    def num_tokens(self) -> int:
        """Of all sequences, scored by one member."""
        return sum(map(len, self.sequences))

    def draw(self, members: int | None = None) -> RandomEnsemble:
        """The ensemble, or its first members."""
        return draw_ensemble(
            self.backbone,
            kind=self.kind,
            members=members or self.members,
            rank=self.rank,
            layers=self.layers,
            max_length=self.max_length,
        )

    def load(self, bundle: Bundle) -> MemberScorer:
        """The engine's scorer of a bundle; without a store, which would hold the first round's work in the second."""
        return load_member_scorer(bundle, device=str(self.device), dtype=self.dtype, store_bytes=0)


@dataclass(frozen=True, slots=True)
class Contest:
    """runs, dtypes: by contestant. reasons: for each result that is missing, why. details: for the record."""

    ensemble: RandomEnsemble
    runs: dict[str, Run] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, dtype: str, run: Run) -> None:
        """Let one compete."""
        self.runs[name] = run
        self.dtypes[name] = dtype

    @property
    def reference(self) -> str:
        """The contestant whose scores are right by definition: PEFT, in fp32 where that competes."""
        peers = ("peft_sequential", "peft_sequential_same_dtype")
        return next((name for name in peers if name in self.runs), "quorum")


def enter(task: Task, folder: Path, stack: ExitStack) -> Contest:
    """Build every contestant that can compete.

    Args:
        task: what is computed.
        folder: an empty one, for bundles, adapters and checkpoints.
        stack: closes what has to be closed.
    """
    contest = Contest(task.draw())
    engine = task.load(contest.ensemble.write(folder / "ensemble"))
    contest.add("quorum", task.dtype, lambda: engine.score(task.sequences).raw)
    one = task.load(contest.ensemble.write_one(folder / "one"))
    contest.add("one_model", task.dtype, lambda: one.score(task.sequences).raw)
    contest.details["attention"] = engine.attention
    contest.details["token_budget"] = {"quorum": engine.token_budget, "one_model": one.token_budget}
    _enter_peft(contest, task, folder)
    _enter_vllm(contest, task, folder, stack)
    return contest


def _enter_peft(contest: Contest, task: Task, folder: Path) -> None:
    if task.kind == "linear":
        for name in RATIOS:
            if name != "ratio_vllm":
                contest.reasons[name] = "members of kind linear have no adapters"
        return
    adapters = contest.ensemble.write_adapters(folder / "adapters")
    budgets = contest.details["peft_token_budget"] = {}

    def load(dtype: str) -> tuple[PaddedPeft, int]:
        peer = PaddedPeft(task.backbone, adapters, dtype=DTYPES[dtype], device=task.device, sequences=task.sequences)
        budgets[dtype] = peer.fastest_budget(task.sequences)
        return peer, budgets[dtype]

    peer, budget = load(task.dtype)
    name = "peft_sequential" if task.dtype == "float32" else "peft_sequential_same_dtype"
    contest.add(name, task.dtype, lambda: peer.one_after_another(task.sequences, budget))
    if task.dtype != "float32" and task.device.type == "cuda":
        contest.reasons["ratio_peft_sequential"] = "on CUDA nobody scores in fp32; --dtype float32 measures it"
    elif task.dtype != "float32":
        exact, exact_budget = load("float32")
        contest.add("peft_sequential", "float32", lambda: exact.one_after_another(task.sequences, exact_budget))
    _enter_users_of_a_gpu(contest, task, adapters, peer)
    try:
        peer.mixed(task.sequences[:2], budget)
    except (TypeError, ValueError) as error:  # heads or layers that PEFT does not mix
        contest.reasons["ratio_peft_mixed_batch"] = f"PEFT refuses a mixed batch here: {error}"
        return
    contest.add("peft_mixed_batch", task.dtype, lambda: peer.mixed(task.sequences, budget))


def _enter_users_of_a_gpu(contest: Contest, task: Task, adapters: list[Path], padded: PaddedPeft) -> None:
    """How PEFT is run on a GPU by those who know its kernels, and by those who take batches as they come."""
    if task.device.type != "cuda":
        for name in ("ratio_peft_padding_free", "ratio_peft_padded_unsorted"):
            contest.reasons[name] = "competes on CUDA alone"
        return
    packed = PaddingFreePeft(
        task.backbone, adapters, dtype=DTYPES[task.dtype], device=task.device, pooling=contest.ensemble.pooling
    )
    budget, size = packed.fastest_budget(task.sequences), padded.fastest_batch_size(task.sequences)
    contest.details["peft_padding_free_token_budget"] = budget
    contest.details["peft_padded_unsorted_batch_size"] = size
    contest.add("peft_padding_free", task.dtype, lambda: packed.one_after_another(task.sequences, budget))
    contest.add("peft_padded_unsorted", task.dtype, lambda: padded.in_given_order(task.sequences, size))


def _enter_vllm(contest: Contest, task: Task, folder: Path, stack: ExitStack) -> None:
    if task.vllm_python is None:
        contest.reasons["ratio_vllm"] = "no --vllm-python was given"
        return
    checkpoint = contest.ensemble.write_checkpoint(folder / "checkpoint")
    try:
        peer = stack.enter_context(
            VllmPeer(task.vllm_python, checkpoint, task.sequences, dtype=task.dtype, max_length=task.max_length)
        )
        peer.score()
    except PeerFailed as error:  # the others' figures are not lost with it
        contest.reasons["ratio_vllm"] = str(error)
        return
    contest.details["vllm_version"] = peer.version
    contest.add("vllm_one_model", task.dtype, peer.score)
