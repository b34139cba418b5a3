"""Which waiting sequences go into an engine's next pass: pure arithmetic on token ids and lengths.

    sequences of a request  --cut_units-->  units: what goes into one pass together
    waiting units by request  --plan_pass-->  how many units of which request

Knows nothing of engines, futures or time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from quorum_model.prefixes import MIN_SHARED_TOKENS, room_for
from quorum_server.engine.messages import TokenIds

Order = Literal["arrival", "least_served"]
"""Whose units come first: the request that came first, or the one of which the fewest tokens were sent so far."""

# How many units that do not fit any more are looked at before a pass is sent as it is.
_MAX_MISFITS = 16


@dataclass(frozen=True, slots=True)
class Unit:
    """Sequences of one request that are scored in one pass.

    indices: their places in the request. num_tokens: that an engine computes for them, at most.
    """

    indices: tuple[int, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request's part in the plan.

    token_budget: most tokens in a pass of its version. sizes: tokens of its waiting units, of at least one.
    served_tokens: sent so far.
    """

    version: str
    token_budget: int
    sizes: Iterable[int]
    served_tokens: int


def cut_units(sequences: Sequence[TokenIds], token_budget: int, *, shares_prefixes: bool = False) -> list[Unit]:
    """Cut a request into units: candidates of one prompt stay together, so that a pass can share their prefix.

    Told by the token ids alone, so that it holds for every protocol: neighbours in lexicographic order belong together
    where they share at least half of the shorter one. A group beyond the budget is cut into several units (where a
    prefix is computed once, beyond a few times that: see `room_for`); a longer sequence is a unit of its own.

    Args:
        sequences: B >= 1 non-empty ones.
        token_budget: most tokens in one pass.
        shares_prefixes: whether the engine computes what sequences of a pass begin with in common once: then it counts
            once here.

    Returns:
        Units with each index once, those of the request's first sequences first.
    """
    # Big-endian bytes of non-negative numbers sort as the numbers do.
    keys = [sequence.astype(">i4").tobytes() for sequence in sequences]
    order = sorted(range(len(sequences)), key=keys.__getitem__)
    units: list[Unit] = []
    current = [order[0]]
    used = common = len(sequences[order[0]])
    for before, index in pairwise(order):
        length, shared = len(sequences[index]), _common_prefix(sequences[before], sequences[index])
        cost = length - max(0, shared - MIN_SHARED_TOKENS + 1) if shares_prefixes else length
        common = min(common, shared)
        room = room_for(token_budget, common) if shares_prefixes else token_budget
        if used + cost <= room and 2 * shared >= min(length, len(sequences[before])):
            current.append(index)
            used += cost
            continue
        units.append(Unit(tuple(current), used))
        current, used, common = [index], length, length
    units.append(Unit(tuple(current), used))
    return sorted(units, key=lambda unit: min(unit.indices))


def _common_prefix(a: TokenIds, b: TokenIds) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def plan_pass(waiting: Sequence[Waiting], order: Order) -> list[int]:
    """Fill one pass with units of one version, up to that version's budget.

    The first unit in `order` always goes, and what it and its followers leave free is filled by later, smaller units.
    So where every second pass goes by arrival no request starves: the oldest one moves on each time. By least served,
    a small request does not wait for the whole of a large one.

    Args:
        waiting: in order of arrival. A first unit that is larger than the budget has the pass to itself.
        order: see `Order`.

    Returns:
        How many of the first units of each request go into the pass; all 0 only where nothing waits.
    """
    counts = [0] * len(waiting)
    sizes = [iter(one.sizes) for one in waiting]
    is_fair = order == "least_served"
    heap = [(one.served_tokens if is_fair else 0, index, one.version) for index, one in enumerate(waiting)]
    heapq.heapify(heap)
    used = misfits = 0
    pass_version: str | None = None
    token_budget = 1
    while heap and used < token_budget and misfits <= _MAX_MISFITS:
        served, index, version = heapq.heappop(heap)
        if pass_version not in (None, version):
            continue
        size = next(sizes[index], None)
        if size is None:
            continue
        if used > 0 and used + size > token_budget:
            misfits += 1  # this request waits: a later unit of it must not overtake this one
            continue
        pass_version, token_budget = version, waiting[index].token_budget
        counts[index] += 1
        used += size
        heapq.heappush(heap, (served + size if is_fair else 0, index, version))
    return counts
