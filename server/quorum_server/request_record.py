"""What is known of a request while it is answered, for the log line and the metrics at its end.

    middleware --start_record-->  request's context  <--current_record--  errors, observers, log records

Kept in the request's context, so that nothing on the way has to hand it on. Holds neither text nor keys.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class RequestRecord:
    """One request. error: code of the error that it was answered with.

    run_header, run: what it said that it belongs to, and the label that the metrics made of it when it was answered.
    ensemble, version, num_items, num_tokens: of the answer, once there is one; tokens as submitted.
    """

    request_id: str
    run_header: str = ""
    run: str = ""
    error: str = ""
    ensemble: str = ""
    version: str = ""
    num_items: int = 0
    num_tokens: int = 0


_CURRENT: ContextVar[RequestRecord | None] = ContextVar("request_record", default=None)


def start_record(record: RequestRecord) -> None:
    """Make it the record of the request that runs in this context, and in the tasks that it starts."""
    _CURRENT.set(record)


def current_record() -> RequestRecord | None:
    """The record of the request that runs here; None outside of requests."""
    return _CURRENT.get()
