"""What held-out pairs say of a trained ensemble: accuracies, calibration, reference statistics.

    raw scores (K, P) of both sides  --measure-->  Measured

Pure numpy on scores that were computed elsewhere. Knows nothing of models or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorum_model.bundle.manifest import MemberCalibration, ReferenceStats
from quorum_model.calibration import fit_member_calibration, fit_pair_temperature, normalize, reference_stats
from quorum_trainer.data import EncodedPair


@dataclass(frozen=True, slots=True)
class Measured:
    """calibration: one a member. metrics: accuracies by source, JSON-ready."""

    calibration: list[MemberCalibration]
    pair_temperature: float
    reference_stats: ReferenceStats
    metrics: dict[str, Any]


def measure(chosen: NDArray[np.float64], rejected: NDArray[np.float64], pairs: Sequence[EncodedPair]) -> Measured:
    """Calibrate on held-out pairs and say how good they are.

    Args:
        chosen: (K, P) raw scores.
        rejected: (K, P) raw scores.
        pairs: the P pairs they belong to.
    """
    means, scales = fit_member_calibration(chosen, rejected)
    calibrated_chosen, calibrated_rejected = normalize(chosen, means, scales), normalize(rejected, means, scales)
    margins = calibrated_chosen - calibrated_rejected
    return Measured(
        calibration=[MemberCalibration(mean=float(m), scale=float(s)) for m, s in zip(means, scales, strict=True)],
        pair_temperature=fit_pair_temperature(margins),
        reference_stats=reference_stats(np.concatenate([calibrated_chosen, calibrated_rejected], axis=1)),
        metrics={"held_out": accuracies(margins, pairs)},
    )


def accuracies(margins: NDArray[np.float64], pairs: Sequence[EncodedPair]) -> dict[str, dict[str, Any]]:
    """Pair accuracy of the ensemble's mean, of its members, and of two baselines that read nothing.

    Args:
        margins: (K, P) calibrated margins of chosen over rejected.
        pairs: the P pairs.

    Returns:
        By source (and "all"): num_pairs, ensemble_mean, members (K numbers), members_average, longer_wins and
        shorter_wins (by characters of the response). Ties count one half everywhere.
    """
    groups = {"all": np.ones(len(pairs), dtype=bool)}
    for source in sorted({pair.source for pair in pairs}):
        groups[source] = np.array([pair.source == source for pair in pairs])
    longer = _share(np.array([pair.chosen_chars - pair.rejected_chars for pair in pairs]))
    table = {}
    for name, chosen_rows in groups.items():
        members = _share(margins[:, chosen_rows]).mean(axis=1)
        table[name] = {
            "num_pairs": int(chosen_rows.sum()),
            "ensemble_mean": float(_share(margins[:, chosen_rows].mean(axis=0)).mean()),
            "members": [float(value) for value in members],
            "members_average": float(members.mean()),
            "longer_wins": float(longer[chosen_rows].mean()),
            "shorter_wins": float(1 - longer[chosen_rows].mean()),
        }
    return table


def _share(difference: NDArray[Any]) -> NDArray[np.float64]:
    """1 where positive, 0 where negative, one half where equal."""
    return np.asarray((np.sign(difference) + 1) / 2)
