"""A request's deadline: from its header to the 504.

    X-Quorum-Timeout-Ms, time of arrival  --deadline_of-->  a time on the event loop's clock  --keep_deadline-->  work

Knows nothing of what is done until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Request
from pydantic import Field, TypeAdapter, ValidationError

from quorum_client.errors import DeadlineExceeded, InvalidRequest

TIMEOUT_HEADER = "X-Quorum-Timeout-Ms"
_MAX_TIMEOUT_MS = 24 * 3600 * 1000
_TIMEOUT_MS: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(ge=0)])


def deadline_of(request: Request) -> float | None:
    """When the answer is of no use any more, on the event loop's clock; None where the request does not say.

    A longer time than a day is a day.

    Raises:
        InvalidRequest: the header holds no number of milliseconds.
    """
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return None
    try:
        timeout_ms = _TIMEOUT_MS.validate_python(given)
    except ValidationError as error:
        raise InvalidRequest(f"{TIMEOUT_HEADER}: {error.errors()[0]['msg']}") from None
    arrived_s: float = request.state.arrived_s
    return arrived_s + min(timeout_ms, _MAX_TIMEOUT_MS) / 1000


@asynccontextmanager
async def keep_deadline(deadline_s: float | None) -> AsyncIterator[None]:
    """Cancel what is inside when `deadline_s` passes.

    Raises:
        DeadlineExceeded: it has passed.
    """
    try:
        async with asyncio.timeout_at(deadline_s) as deadline:
            yield
    except TimeoutError as error:
        if deadline.expired():
            raise DeadlineExceeded("the deadline of this request passed before it was scored") from error
        raise
