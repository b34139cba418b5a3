"""Runs that survive: what is kept of a run while it goes on, and taken up again when it is resumed.

    train_phase  --offer(snapshot) after every step-->  Keeper  --resume-->  train_phase, later, elsewhere
    ensemble     --finish(result) after every stage-->  Keeper  --result-->  ensemble

`KeepNothing` for code that trains in memory; `RunFolder` (run_folder.py) on disk. Knows nothing of training itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from quorum_client.errors import QuorumError
from quorum_trainer.training.stages import StageResult


class TrainingInterrupted(QuorumError):
    """The run was asked to stop; a checkpoint holds everything that was done."""

    code = "training_interrupted"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A phase between two steps: parameters and optimiser state by name, and counters."""

    tensors: dict[str, Tensor]
    numbers: dict[str, float]


class Keeper(Protocol):
    """What a run needs of whoever keeps it."""

    def result(self, stage: str) -> StageResult | None:
        """What a finished stage left behind; None where it is not finished."""

    def finish(self, stage: str, result: StageResult) -> None:
        """Keep what a stage left behind; its checkpoint is no longer needed."""

    def resume(self, stage: str) -> Snapshot | None:
        """Where an unfinished stage stood; None to begin it."""

    def is_asked_to_stop(self) -> bool:
        """Whether somebody wants this run to stop."""

    def offer(self, stage: str, take: Callable[[], Snapshot], *, stop: bool) -> None:
        """After a step: take a snapshot if it is time for one, or if all workers stop here.

        Raises:
            TrainingInterrupted: they stop; the snapshot was taken.
        """


class KeepNothing:
    """Everything lives in memory."""

    def result(self, stage: str) -> StageResult | None:  # noqa: ARG002
        """Nothing was kept."""
        return None

    def finish(self, stage: str, result: StageResult) -> None:
        """Not kept."""

    def resume(self, stage: str) -> Snapshot | None:  # noqa: ARG002
        """Nothing was kept."""
        return None

    def is_asked_to_stop(self) -> bool:
        """Never."""
        return False

    def offer(self, stage: str, take: Callable[[], Snapshot], *, stop: bool) -> None:
        """Not taken."""
