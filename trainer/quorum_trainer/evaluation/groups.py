"""Which rows a figure is about: all of them, a file's, or those of a file that share a subset, source or domain.

    [Row]  --group_rows-->  {name: mask (P,)}

Knows no scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quorum_trainer.evaluation.rows import Row

ALL = "all"

Mask = NDArray[np.bool_]


def group_rows(rows: Sequence[Row]) -> dict[str, Mask]:
    """Groups in the order of a report; a group that would repeat the one above it is left out.

    Args:
        rows: P of them.

    Returns:
        "all", then each file ("hh") where there are several, then its parts ("hh: subset=chat") where a field has
        several values in it; masks of shape (P,).
    """
    files = list(dict.fromkeys(row.file for row in rows))
    groups: dict[str, Mask] = {ALL: np.ones(len(rows), dtype=bool)}
    for file in files:
        own = [row for row in rows if row.file == file]
        if len(files) > 1:
            groups[file] = np.array([row.file == file for row in rows])
        for field in dict.fromkeys(name for row in own for name in row.tags):
            values = sorted({row.tags[field] for row in own if field in row.tags})
            if len(values) < 2 and all(field in row.tags for row in own):
                continue
            for value in values:
                groups[f"{file}: {field}={value}"] = np.array(
                    [row.file == file and row.tags.get(field) == value for row in rows]
                )
    return groups


def is_whole(group: str) -> bool:
    """Whether a group is all rows or a file's: those get every figure, parts of a file their accuracy alone."""
    return ": " not in group
