"""Clients of a benchmark: single-item POSTs, so many at a time, each answer timed and kept.

    url, bodies, concurrency  --post_all-->  answers in order, seconds of each

Knows nothing of who answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

_PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Answers:
    """bodies: decoded, one a request, in order. latencies_s: of the same."""

    bodies: list[dict[str, Any]]
    latencies_s: list[float]


def post_all(url: str, bodies: Sequence[dict[str, Any]], concurrency: int) -> Answers:
    """POST every body once, by `concurrency` clients that each wait for their answer.

    Raises:
        httpx.HTTPError: a request failed or was refused; nobody tries twice.
    """
    return asyncio.run(_post_all(url, bodies, concurrency))


async def _post_all(url: str, bodies: Sequence[dict[str, Any]], concurrency: int) -> Answers:
    answers: list[dict[str, Any]] = [{}] * len(bodies)
    latencies = [0.0] * len(bodies)
    waiting: Iterator[int] = iter(range(len(bodies)))
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(timeout=_PATIENCE_S, limits=limits, trust_env=False) as http:

        async def client() -> None:
            for index in waiting:
                started = time.perf_counter()
                reply = await http.post(url, json=bodies[index])
                latencies[index] = time.perf_counter() - started
                reply.raise_for_status()
                answers[index] = reply.json()

        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(bodies))):
                group.create_task(client())
    return Answers(answers, latencies)
