"""Which waiting sequences go into the engine's next pass: pure arithmetic on lengths.

    waiting jobs, in order of arrival  --plan_pass-->  how many sequences of each

Knows nothing of tokens' values, engines or futures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def plan_pass(waiting: Iterable[tuple[str, Sequence[int]]], token_budget: int) -> list[int]:
    """Fill one pass strictly in order of arrival: a job is split rather than overtaken, so none can starve.

    Args:
        waiting: for each job, its ensemble version and the lengths in tokens of its sequences not yet scored, all
            of them jobs with at least one.
        token_budget: most tokens in the pass. A longer sequence gets a pass of its own.

    Returns:
        How many sequences of the first, second, … job go into the pass; shorter than `waiting` where the budget ends
        or where the version changes (one pass is one version).
    """
    counts: list[int] = []
    pass_version: str | None = None
    used = 0
    for version, lengths in waiting:
        if pass_version not in (None, version):
            break
        pass_version = version
        count = 0
        for length in lengths:
            if used > 0 and used + length > token_budget:
                break
            used += length
            count += 1
        if count == 0:
            break
        counts.append(count)
        if count < len(lengths):
            break
    return counts
