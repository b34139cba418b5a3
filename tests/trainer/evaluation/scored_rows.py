"""Scored rows without a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from quorum_trainer.evaluation.rows import Row
from quorum_trainer.evaluation.scores import ScoredRow


def scored_row(members: Any, gold: Any = (1.0, 0.0), prompt: str = "p", **changes: Any) -> ScoredRow:
    """A row of N responses with given scores (K, N)."""
    scores = np.array(members, dtype=float)
    values: dict[str, Any] = {
        "file": "f",
        "line": 1,
        "prompt": prompt,
        "responses": tuple("x" * (index + 1) for index in range(scores.shape[1])),
        "gold": tuple(float(value) for value in gold),
        "tags": {},
    }
    return ScoredRow(Row(**(values | changes)), scores, 0)
