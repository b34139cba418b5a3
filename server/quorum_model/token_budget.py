"""How many tokens to compute in one pass: tried when an ensemble is loaded, since it depends on the machine.

    seconds of a pass of n tokens  --choose_token_budget-->  n

On a CPU a pass is best when its activations stay in the caches, on a GPU when it is large enough to fill it; beyond
that a larger pass only makes others wait. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable

SMALLEST, LARGEST = 256, 65536
ENOUGH = 0.95
"""A budget is taken where it reaches this share of the best rate that was seen: machines are noisy, and smaller passes
let others in earlier."""


def choose_token_budget(seconds_of: Callable[[int], float | None], *, patience_s: float = 0.5) -> int:
    """The smallest budget that is nearly as fast, per token, as any that was tried.

    Budgets are doubled until one takes longer than `patience_s`, does not fit into memory, or is clearly slower than a
    smaller one.

    Args:
        seconds_of: time of a pass of so many tokens, or None where memory does not suffice.
        patience_s: a pass that takes longer is not worth doubling: others wait for it.
    """
    rates: dict[int, float] = {}
    budget = SMALLEST
    while budget <= LARGEST:
        seconds = seconds_of(budget)
        if seconds is None:
            break
        rates[budget] = budget / seconds
        if seconds > patience_s or rates[budget] < 0.8 * max(rates.values()):
            break
        budget *= 2
    if not rates:
        return SMALLEST
    return next(each for each, rate in rates.items() if rate >= ENOUGH * max(rates.values()))
