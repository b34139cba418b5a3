"""What a judge said, as a number; None where it said nothing that counts. Pure.

FastChat's rules (`fastchat/llm_judge/common.py`) and those of alpaca_eval's classifier.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_RATING = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


def read_preference(text: str) -> float | None:
    """How far the first of two outputs is preferred: 1, 0, or 0.5 for a tie.

    [[A]], [[B]], [[C]] as FastChat's judges write, or m and M, the names in alpaca_eval's classifier.
    """
    for mark, preference in (("[[A]]", 1.0), ("[[B]]", 0.0), ("[[C]]", 0.5)):
        if mark in text:
            return preference
    return {"m": 1.0, "M": 0.0}.get(text.strip())


def weigh_tokens(top: Mapping[str, float]) -> float | None:
    """The first output's share of the probability that the judge gave to m and M (alpaca_eval's weighted annotator).

    Args:
        top: log-probabilities of the likeliest first tokens.
    """
    first, second = (math.exp(top.get(token, -math.inf)) for token in ("m", "M"))
    return first / (first + second) if first + second > 0 else None


def read_rating(text: str) -> float | None:
    """The rating from 1 to 10 between double brackets; between single ones where there are no double ones."""
    for pattern in _RATING:
        match = pattern.search(text)
        if match is not None:
            return float(match[1])
    return None
