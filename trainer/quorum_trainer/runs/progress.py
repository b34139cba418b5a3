"""A run as a person sees it: one bar a stage with its loss and time left, or lines where nobody watches.

Knows nothing of trackers.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

from quorum_trainer.training.reports import Evaluation, StepReport

_LINES_A_STAGE = 20


class ProgressReporter:
    """Shows a run on a console; a context manager.

    Args:
        console: where.
        quiet: one of several processes speaks, the others keep quiet.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = Console(quiet=True) if quiet else console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeLeftColumn(),
            console=self._console,
        )
        self._task: TaskID | None = None
        self._running: float | None = None

    def __enter__(self) -> Self:
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.__exit__(kind, error, trace)

    def say(self, *lines: str) -> None:
        """Plain lines."""
        for line in lines:
            self._console.print(line, markup=False, highlight=False)

    def begin(self, stage: str, total: int, done: int) -> None:
        """A new bar; its loss is a running mean over the stage."""
        self._running = None
        self._task = self._bars.add_task(stage, total=total, completed=done, loss="-")
        if done:
            self._console.print(f"{stage}: goes on after step {done} of {total}")

    def step(self, report: StepReport) -> None:
        """Move the bar on."""
        now = sum(report.losses) / len(report.losses)
        self._running = now if self._running is None else 0.95 * self._running + 0.05 * now
        assert self._task is not None
        self._bars.update(self._task, completed=report.step, loss=f"{self._running:.4f}")
        share, before = (step * _LINES_A_STAGE // report.total for step in (report.step, report.step - 1))
        if not self._console.is_terminal and share > before:
            self._console.print(f"{report.stage}: step {report.step} of {report.total}, loss {self._running:.4f}")

    def evaluated(self, evaluation: Evaluation) -> None:
        """A line."""
        self._console.print(
            f"{evaluation.stage}, step {evaluation.step}: held-out loss {evaluation.loss:.4f}, "
            f"accuracy {evaluation.accuracy:.3f}"
        )
