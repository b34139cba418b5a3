"""The choice of a token budget, against machines whose best is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quorum_model.loading import load_member_scorer
from quorum_model.token_budget import LARGEST, SMALLEST, choose_token_budget
from tests.server.tiny_bundle import make_bert_bundle


def machine(rate: Callable[[int], float], memory: int = LARGEST) -> tuple[Callable[[int], float | None], list[int]]:
    """Seconds of a pass on a machine of so many tokens a second by pass size; and what was tried."""
    tried: list[int] = []

    def seconds_of(tokens: int) -> float | None:
        tried.append(tokens)
        return tokens / rate(tokens) if tokens <= memory else None

    return seconds_of, tried


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (lambda _n: 1e6, SMALLEST),  # flat: smaller passes let others in earlier
        (lambda n: 1e6 * n / (n + 300), 8192),  # launches cost what 300 tokens do: 0.96 at 8,192, 0.93 at 4,096
        (lambda n: 1e5 if n <= 1024 else 5e4, SMALLEST),  # falls out of the cache
        (lambda n: {256: 5e4, 512: 8e4, 1024: 1e5, 2048: 9e4}.get(n, 6e4), 1024),
    ],
)
def test_the_smallest_budget_that_is_nearly_as_fast_as_any(rate: Callable[[int], float], expected: int) -> None:
    seconds_of, _ = machine(rate)
    assert choose_token_budget(seconds_of) == expected


def test_a_slow_machine_is_not_kept_waiting() -> None:
    seconds_of, tried = machine(lambda _n: 400)
    assert choose_token_budget(seconds_of) == SMALLEST
    assert tried == [256]


def test_memory_ends_the_trial() -> None:
    seconds_of, tried = machine(lambda n: 1e6 * n, memory=2048)
    assert choose_token_budget(seconds_of) == 2048
    assert tried[-1] == 4096
    assert choose_token_budget(machine(lambda _n: 1e6, memory=1)[0]) == SMALLEST


def test_a_loaded_ensemble_has_tried_its_budget(tmp_path: Path) -> None:
    bundle = make_bert_bundle(tmp_path / "tiny")
    assert SMALLEST <= load_member_scorer(bundle).token_budget <= LARGEST
    assert load_member_scorer(bundle, token_budget=77).token_budget == 77
