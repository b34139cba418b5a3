"""What goes between ingress and scorer: a request and an answer, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quorum_server.deadline import TIMEOUT_HEADER

Headers = tuple[tuple[bytes, bytes], ...]

_TIMEOUT = TIMEOUT_HEADER.lower().encode()


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request, its body read. target: path and query."""

    method: str
    target: str
    headers: Headers
    body: bytes

    @property
    def may_be_repeated(self) -> bool:
        """Whether it changes nothing, or comes to the same: scoring does, and so does a PUT of an ensemble."""
        return self.method in ("GET", "HEAD", "POST") or (self.method == "PUT" and "/members/" not in self.target)

    @property
    def timeout_ms(self) -> int | None:
        """How long its client waits; None where it does not say, or says no number: the scorer will refuse that."""
        given = next((value for name, value in self.headers if name.lower() == _TIMEOUT), b"")
        return int(given) if given.isdigit() else None

    def asked_later(self, timeout_ms: int) -> Request:
        """The same, with this left of its client's time."""
        kept = tuple((name, value) for name, value in self.headers if name.lower() != _TIMEOUT)
        return replace(self, headers=(*kept, (_TIMEOUT, str(timeout_ms).encode())))


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response, whole."""

    status: int
    headers: Headers
    body: bytes
