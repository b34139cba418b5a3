"""Whether contestants computed the same: a time of wrong numbers is worth nothing.

{contestant: raw scores}, reference  --check_agreement-->  largest difference each
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorum_model.errors import ContestantsDisagree

# In units of a member's own standard deviation over the sequences. fp32: other kernels, other summation order; bf16: 8
# bits of mantissa through every layer. The same bounds as in the self-test of a bundle.
TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "bfloat16": 0.25}


def largest_difference(reference: NDArray[Any], scores: NDArray[Any]) -> float:
    """The largest |scores - reference|, in units of the member's standard deviation in the reference.

    Args:
        reference: (K, B).
        scores: (K', B), of the first K' members.
    """
    expected = np.asarray(reference, np.float64)[: len(scores)]
    spread = expected.std(axis=1, keepdims=True)
    return float((np.abs(np.asarray(scores, np.float64) - expected) / spread).max())


def check_agreement(scores: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str], reference: str) -> dict[str, float]:
    """The largest difference of every contestant from the reference.

    Args:
        scores: (K', B) by contestant, of the first K' members.
        dtypes: what each computed in.
        reference: the contestant that all are compared with.

    Raises:
        ContestantsDisagree: one is further away than rounding takes it, or has a score that is no number.
    """
    differences = {name: largest_difference(scores[reference], own) for name, own in scores.items()}
    for name, difference in differences.items():
        allowed = max(TOLERANCE[dtypes[name]], TOLERANCE[dtypes[reference]])
        if not difference <= allowed:
            raise ContestantsDisagree(
                f"{name} is {difference:.3g} standard deviations away from {reference} (allowed {allowed:g}): "
                "their scores differ, so their times say nothing"
            )
    return differences
