"""When to try again: exponential backoff with full jitter, within one deadline for the whole call.

    QuorumError + elapsed time  --next_delay_s-->  seconds to wait | the error to raise

Scoring is idempotent, so every call may be tried again. Knows no HTTP, and reads only the clock it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from quorum_client.errors import DeadlineExceeded, InvalidRequest, QuorumError

BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 8.0


def next_delay_s(
    error: QuorumError, *, attempt: int, max_retries: int, elapsed_s: float, deadline_s: float, jitter: float
) -> float:
    """Seconds to wait before the next attempt.

    The backoff doubles from 0.25 s up to 8 s, times `jitter` ("full jitter": clients that failed together do not
    come back together). A server's Retry-After is a lower bound.

    Args:
        error: why the last attempt failed.
        attempt: how many attempts have failed; >= 1.
        max_retries: how many further attempts after the first the caller allows.
        elapsed_s: seconds since the call began.
        deadline_s: seconds that the whole call may take.
        jitter: uniform in [0, 1).

    Raises:
        QuorumError: `error` itself, where another attempt cannot help or none is left.
        DeadlineExceeded: the wait would not end before the deadline; `error` is its cause.
    """
    if not error.retryable or attempt > max_retries:
        raise error
    delay_s = jitter * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(attempt - 1, 30))
    if error.retry_after_s is not None:
        delay_s = max(delay_s, error.retry_after_s)
    if elapsed_s + delay_s >= deadline_s:
        raise DeadlineExceeded(
            f"no answer within {deadline_s:g} s and {attempt} attempts; last: {error.code}: {error.message}",
            request_id=error.request_id,
        ) from error
    return delay_s


class Budget:
    """The time and the attempts that one call has, counted from its creation.

    Args:
        deadline_s: seconds for the whole call with all its retries.
        max_retries: attempts after the first.
        clock: monotonic seconds.
        jitter: source of uniform numbers in [0, 1).

    Raises:
        InvalidRequest: `deadline_s` is not a finite number > 0, or `max_retries` is negative.
    """

    def __init__(
        self, *, deadline_s: float, max_retries: int, clock: Callable[[], float], jitter: Callable[[], float]
    ) -> None:
        if not math.isfinite(deadline_s) or deadline_s <= 0:
            raise InvalidRequest("deadline_s must be a finite number > 0")
        if max_retries < 0:
            raise InvalidRequest("max_retries must be >= 0")
        self._deadline_s = deadline_s
        self._max_retries = max_retries
        self._clock = clock
        self._jitter = jitter
        self._started_s = clock()
        self._num_failed = 0

    def remaining_s(self) -> float:
        """Seconds left, > 0. Raises: DeadlineExceeded: none are."""
        remaining_s = self._deadline_s - (self._clock() - self._started_s)
        if remaining_s <= 0:
            raise DeadlineExceeded(f"no answer within {self._deadline_s:g} s")
        return remaining_s

    def delay_after(self, error: QuorumError) -> float:
        """Count a failed attempt; see `next_delay_s` for what is returned and raised."""
        self._num_failed += 1
        return next_delay_s(
            error,
            attempt=self._num_failed,
            max_retries=self._max_retries,
            elapsed_s=self._clock() - self._started_s,
            deadline_s=self._deadline_s,
            jitter=self._jitter(),
        )
