"""Contestants that take turns: machines are noisy, so what is compared is what ran minutes apart, round by round.

    {name: prepare}  --take_turns-->  seconds a round  --Turns.ratio-->  median over rounds of one name over another

Knows nothing of what the work is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Prepare = Callable[[], Callable[[], object]]
"""Sets one turn's work up, and gives the work."""


def unprepared(work: Callable[[], object]) -> Prepare:
    """Work that needs no setting up."""
    return lambda: work


@dataclass(frozen=True, slots=True)
class Turns:
    """seconds: by contestant, one a round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Seconds of a round."""
        return statistics.median(self.seconds[name])

    def ratio(self, slower: str, faster: str) -> float:
        """How many times as long `slower` took as `faster`, in the same round; the median over rounds."""
        pairs = zip(self.seconds[slower], self.seconds[faster], strict=True)
        return statistics.median(left / right for left, right in pairs)


def take_turns(
    contestants: Mapping[str, Prepare], rounds: int, on_turn: Callable[[str, int], None] | None = None
) -> Turns:
    """Run every contestant once a round, in alternating direction, after one untimed round to warm up.

    Args:
        contestants: by name; each is prepared anew, untimed, before every turn.
        rounds: timed ones.
        on_turn: told of each turn before it starts, with its round; 0 is the warm-up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        names = list(contestants)
        for name in names if number % 2 else reversed(names):
            if on_turn is not None:
                on_turn(name, number)
            work = contestants[name]()
            started = time.perf_counter()
            work()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return Turns(seconds)
