"""What goes between ingress and scorer: a request and an answer, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

Headers = tuple[tuple[bytes, bytes], ...]


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


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response, whole."""

    status: int
    headers: Headers
    body: bytes
