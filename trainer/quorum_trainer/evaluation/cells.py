"""How a number is written in a table."""

from __future__ import annotations

from typing import Any


def estimate_cell(one: dict[str, Any] | None, digits: int = 3) -> str:
    """A figure with its interval, where there is one: {value, low, high}."""
    if one is None:
        return "-"
    if one["low"] is None:
        return f"{one['value']:.{digits}f}"
    return f"{one['value']:.{digits}f} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"


def number_cell(value: float | None) -> str:
    """A figure without one."""
    return "-" if value is None else f"{value:.3f}"
