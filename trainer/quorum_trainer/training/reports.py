"""What a run says while it goes on.

    train_phase  --StepReport, Evaluation-->  Reporter  -->  progress bar, trackers

Data and the seam; who shows it is in progress.py and trackers.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of a stage. losses, gradient_norms: a member's, (K,); lr: the peak members' learning rate now."""

    stage: str
    step: int
    total: int
    losses: list[float]
    gradient_norms: list[float]
    lr: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A look at held-out pairs during a stage."""

    stage: str
    step: int
    loss: float
    accuracy: float


class Reporter(Protocol):
    """Whoever listens to a run."""

    def begin(self, stage: str, total: int, done: int) -> None:
        """A stage begins, or goes on after `done` of `total` steps."""

    def step(self, report: StepReport) -> None:
        """A step is done."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """Held-out pairs were looked at."""


class Silent:
    """Nobody listens."""

    def begin(self, stage: str, total: int, done: int) -> None:
        """Not said."""

    def step(self, report: StepReport) -> None:
        """Not said."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """Not said."""


class Together:
    """Several listeners."""

    def __init__(self, reporters: Sequence[Reporter]) -> None:
        self._reporters = list(reporters)

    def begin(self, stage: str, total: int, done: int) -> None:
        """Pass on."""
        for reporter in self._reporters:
            reporter.begin(stage, total, done)

    def step(self, report: StepReport) -> None:
        """Pass on."""
        for reporter in self._reporters:
            reporter.step(report)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Pass on."""
        for reporter in self._reporters:
            reporter.evaluated(evaluation)
