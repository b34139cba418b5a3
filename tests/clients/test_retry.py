"""When another attempt is made: hand-worked delays, the deadline, and the properties of the backoff."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorum_client._retry import BACKOFF_MAX_S, Budget, next_delay_s
from quorum_client.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded, QuorumError


def delay(error: QuorumError, **changes: float) -> float:
    values = {"attempt": 1, "max_retries": 9, "elapsed_s": 0.0, "deadline_s": 1000.0, "jitter": 1.0, **changes}
    return next_delay_s(error, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("attempt", "expected"), [(1, 0.25), (2, 0.5), (3, 1), (4, 2), (5, 4), (6, 8), (7, 8), (9, 8)])
def test_backoff_doubles_up_to_its_cap(attempt: int, expected: float) -> None:
    assert delay(NotReady("starting"), attempt=attempt) == expected


def test_jitter_scales_the_whole_delay() -> None:
    assert delay(NotReady("starting"), attempt=3, jitter=0.0) == 0.0
    assert delay(NotReady("starting"), attempt=3, jitter=0.25) == 0.25


def test_retry_after_is_a_lower_bound() -> None:
    assert delay(Overloaded("full", retry_after_s=3.0), jitter=0.5) == 3.0
    assert delay(Overloaded("full", retry_after_s=0.0), jitter=0.5) == 0.125


def test_what_cannot_pass_is_raised_as_it_is() -> None:
    error = InvalidRequest("wrong")
    with pytest.raises(InvalidRequest) as caught:
        delay(error)
    assert caught.value is error


def test_last_error_is_raised_when_no_retry_is_left() -> None:
    error = NotReady("starting")
    assert delay(error, attempt=2, max_retries=2) > 0
    with pytest.raises(NotReady) as caught:
        delay(error, attempt=3, max_retries=2)
    assert caught.value is error


def test_wait_beyond_the_deadline_is_not_begun() -> None:
    error = Overloaded("full", retry_after_s=5.0, request_id="r1")
    assert delay(error, elapsed_s=4.0, deadline_s=9.1) == 5.0
    with pytest.raises(DeadlineExceeded, match="overloaded: full") as caught:
        delay(error, elapsed_s=4.0, deadline_s=9.0)
    assert caught.value.__cause__ is error
    assert caught.value.request_id == "r1"


@given(
    attempt=st.integers(1, 2000),
    jitter=st.floats(0, 1, exclude_max=True),
    elapsed_s=st.floats(0, 100),
    retry_after_s=st.none() | st.floats(0, 50),
)
def test_delay_is_bounded_and_ends_before_the_deadline(
    attempt: int, jitter: float, elapsed_s: float, retry_after_s: float | None
) -> None:
    error = Overloaded("full", retry_after_s=retry_after_s)
    try:
        wait_s = delay(error, attempt=attempt, max_retries=2000, elapsed_s=elapsed_s, deadline_s=60.0, jitter=jitter)
    except DeadlineExceeded:
        assert elapsed_s + max(BACKOFF_MAX_S, retry_after_s or 0.0) >= 60.0
    else:
        assert elapsed_s + wait_s < 60.0
        assert (retry_after_s or 0.0) <= wait_s <= max(BACKOFF_MAX_S, retry_after_s or 0.0)


def test_budget_counts_time_and_attempts_from_its_creation() -> None:
    now_s = 100.0
    budget = Budget(deadline_s=10.0, max_retries=2, clock=lambda: now_s, jitter=lambda: 1.0)
    assert budget.remaining_s() == 10.0
    now_s = 103.0
    assert budget.remaining_s() == 7.0
    assert budget.delay_after(NotReady("starting")) == 0.25
    assert budget.delay_after(NotReady("starting")) == 0.5
    with pytest.raises(NotReady):
        budget.delay_after(NotReady("starting"))
    now_s = 110.0
    with pytest.raises(DeadlineExceeded, match="within 10 s"):
        budget.remaining_s()


@pytest.mark.parametrize(("deadline_s", "max_retries"), [(0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, -1)])
def test_impossible_budgets_are_refused(deadline_s: float, max_retries: int) -> None:
    with pytest.raises(InvalidRequest):
        Budget(deadline_s=deadline_s, max_retries=max_retries, clock=lambda: 0.0, jitter=lambda: 0.0)
