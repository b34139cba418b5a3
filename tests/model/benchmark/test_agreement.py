"""Differences are in units of a member's own spread, and a contestant that computes something else is refused."""

from __future__ import annotations

import numpy as np
import pytest

from quorum_model.benchmark.agreement import check_agreement, largest_difference
from quorum_model.errors import ContestantsDisagree

REFERENCE = np.array([[1.0, 3.0], [0.0, 20.0]])  # standard deviations 1 and 10


def test_units() -> None:
    assert largest_difference(REFERENCE, REFERENCE) == 0
    assert largest_difference(REFERENCE, REFERENCE + np.array([[0.0, 0.25], [1.0, 0.0]])) == pytest.approx(0.25)
    assert largest_difference(REFERENCE, REFERENCE + np.array([[0.0, 0.0], [5.0, 0.0]])) == pytest.approx(0.5)
    assert largest_difference(REFERENCE, np.array([[1.0, 3.5]])) == pytest.approx(0.5)  # the first member alone


def test_rounding_is_let_pass_and_reported() -> None:
    scores = {"exact": REFERENCE, "fp32": REFERENCE + 5e-4, "bf16": REFERENCE + 0.2}
    dtypes = {"exact": "float32", "fp32": "float32", "bf16": "bfloat16"}
    found = check_agreement(scores, dtypes, "exact")
    assert found == pytest.approx({"exact": 0, "fp32": 5e-4, "bf16": 0.2})


@pytest.mark.parametrize(
    ("wrong", "dtype"),
    [(REFERENCE + 2e-3, "float32"), (REFERENCE + 0.3, "bfloat16"), (REFERENCE * np.nan, "bfloat16"),
     (REFERENCE[::-1], "bfloat16")],
)  # fmt: skip
def test_another_score_is_refused(wrong: np.ndarray, dtype: str) -> None:
    with pytest.raises(ContestantsDisagree, match="other is"):
        check_agreement({"exact": REFERENCE, "other": wrong}, {"exact": "float32", "other": dtype}, "exact")
