"""How a run is asked to stop: by a signal, heard between two steps.

SIGINT, SIGTERM  --stopping-->  RunFolder.ask_to_stop
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from quorum_trainer.runs.run_folder import RunFolder


@contextmanager
def stopping(keeper: RunFolder, console: Console) -> Iterator[None]:
    """The first SIGINT or SIGTERM stops after the step under way; a second one as ever."""

    def stop(number: int, _frame: object) -> None:
        keeper.ask_to_stop()
        signal.signal(number, previous[signal.Signals(number)])
        console.print("stopping after this step; once more to stop at once")

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in previous:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
