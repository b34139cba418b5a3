"""Turns are taken in alternating direction, prepared anew, and compared round by round."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quorum_model.benchmark.environment import describe_environment
from quorum_model.benchmark.turns import Turns, take_turns


def test_everyone_has_a_turn_each_round_and_a_warm_up() -> None:
    happened: list[str] = []

    def contestant(name: str) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            happened.append(f"prepare {name}")
            return lambda: happened.append(name)

        return prepare

    told: list[tuple[str, int]] = []
    turns = take_turns(
        {"a": contestant("a"), "b": contestant("b")}, 2, lambda name, number: told.append((name, number))
    )
    assert told == [("b", 0), ("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert happened == [word for name, _ in told for word in (f"prepare {name}", name)]
    assert {name: len(seconds) for name, seconds in turns.seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_the_median_over_rounds() -> None:
    turns = Turns({"slow": [2.0, 30.0, 4.0], "fast": [1.0, 10.0, 1.0]})
    assert turns.median("slow") == 4.0
    assert turns.ratio("slow", "fast") == pytest.approx(3.0)  # of 2, 3 and 4; the medians' ratio would be 4


def test_the_environment_is_on_record() -> None:
    found = describe_environment()
    assert found["threads"] == 1
    assert found["packages"]["torch"]
    assert found["processor"]
