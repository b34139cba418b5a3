"""Figures of preference pairs: accuracy, calibration, what disagreement knows of errors.

    [ScoredRow] of two responses  --pair_figures-->  JSON-ready figures by group

Rewards are compared uncentred, as two calls of POST /score would be. A tie counts one half; as "wrong" it counts as not
right. Keys are documented in `report`. Knows no files.

Shapes: `K` members, `P` pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorum_client.modes import std
from quorum_trainer.evaluation.bootstrap import Estimate, FloatArray, IntArray, cluster_ids, mean_estimate
from quorum_trainer.evaluation.groups import group_rows, is_whole
from quorum_trainer.evaluation.reliability import cross_fitted_temperatures, reliability
from quorum_trainer.evaluation.scores import ScoredRow
from quorum_trainer.evaluation.scorings import Scoring
from quorum_trainer.evaluation.styles import win_shares
from quorum_trainer.evaluation.uncertainty import (
    deciles,
    mean_correlation,
    member_agreement,
    rank_statistics,
    selective_accuracy,
)

ONE_MEMBER = "one member: there is no spread over members"


@dataclass(frozen=True, slots=True)
class Pairs:
    """members: calibrated scores, shape (K, P, 2), chosen first. chars: of the responses (P, 2). keys: of prompts."""

    members: FloatArray
    chars: NDArray[np.int64]
    keys: list[str]

    @classmethod
    def of(cls, scored: Sequence[ScoredRow]) -> Pairs:
        """Stack scored rows of two responses."""
        return cls(
            np.stack([one.members for one in scored], axis=1),
            np.array([[len(text) for text in one.row.responses] for one in scored]),
            [one.row.prompt_key for one in scored],
        )

    def take(self, rows: NDArray[np.bool_]) -> Pairs:
        """Those of a group."""
        return Pairs(
            self.members[:, rows], self.chars[rows], [key for key, kept in zip(self.keys, rows, strict=True) if kept]
        )

    @property
    def margins(self) -> FloatArray:
        """Chosen minus rejected by member: shape (K, P)."""
        return np.asarray(self.members[..., 0] - self.members[..., 1])


def pair_figures(
    scored: Sequence[ScoredRow], scorings: Sequence[Scoring], tau: float, member_names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """All figures by group; the parts of a file get accuracy alone.

    Args:
        scored: rows of two responses, chosen first.
        scorings: see `choose_scorings`.
        tau: the bundle's pair temperature.
        member_names: K of them.
    """
    pairs = Pairs.of(scored)
    figures: dict[str, dict[str, Any]] = {}
    for name, mask in group_rows([one.row for one in scored]).items():
        group = pairs.take(mask)
        clusters = cluster_ids(group.keys)
        figures[name] = {
            "num_pairs": len(group.keys),
            "num_prompts": int(clusters.max()) + 1,
            "accuracy": accuracy(group, clusters, scorings, member_names),
        }
        if is_whole(name):
            figures[name] |= {
                "calibration": calibration(group.margins, clusters, tau),
                "uncertainty": uncertainty(group, clusters),
                "agreement": agreement(group.margins, member_names),
            }
    return figures


def accuracy(
    pairs: Pairs, clusters: IntArray, scorings: Sequence[Scoring], member_names: Sequence[str]
) -> dict[str, Any]:
    """Pair accuracy of every scoring, every member and the baselines, with intervals over prompts."""

    def estimate(difference: NDArray[Any]) -> dict[str, float | None]:
        return mean_estimate(win_shares(difference), clusters).to_json()

    rewards = {scoring.label: scoring.rewards(pairs.members) for scoring in scorings}
    members = {name: estimate(margin) for name, margin in zip(member_names, pairs.margins, strict=True)}
    longer = pairs.chars[:, 0] - pairs.chars[:, 1]
    return {
        "scorings": {label: estimate(reward[:, 0] - reward[:, 1]) for label, reward in rewards.items()},
        "members": members,
        "members_average": float(win_shares(pairs.margins).mean()),
        "baselines": {
            "longer": estimate(longer),
            "shorter": estimate(-longer),
            "random": Estimate(0.5, None, None).to_json(),
        },
    }


def calibration(margins: FloatArray, clusters: IntArray, tau: float) -> dict[str, Any]:
    """How well sigmoid(tau * mean margin) predicts, with the bundle's tau, and with taus fitted on other prompts."""
    figures: dict[str, Any] = {"bundle": {"tau": tau, **asdict(reliability(margins, tau))}}
    if clusters.max() < 1:
        return figures | {"cross_fitted": None, "reason": "a single prompt: there are no others to fit tau on"}
    taus = cross_fitted_temperatures(margins, clusters)
    fitted = {"taus": np.unique(taus).tolist(), **asdict(reliability(margins, taus))}
    return figures | {"cross_fitted": fitted, "reason": None}


def uncertainty(pairs: Pairs, clusters: IntArray) -> dict[str, Any]:
    """What four measures of uncertainty know of the mean's errors.

    margin_std: std over members of the margin, free of the offsets between prompts. score_std: the mean of the two
    sides' std. closeness: minus the size of the mean margin, the measure that a single model has too, and that a std
    must beat to be worth its cost. relative_std: margin_std against that size, see `relative_spread`; members whose
    scales differ disagree most where margins are large, so margin_std alone grows with the margin.
    """
    margins = pairs.margins
    mean_margin = margins.mean(axis=0)
    spread, sides = std(margins), std(pairs.members)
    measures = {
        "margin_std": spread,
        "score_std": None if sides is None else sides.mean(axis=1),
        "closeness": -np.abs(mean_margin),
        "relative_std": None if spread is None else relative_spread(spread, mean_margin),
    }
    shares = win_shares(mean_margin)
    return {name: _measure(values, shares, clusters) for name, values in measures.items()}


def relative_spread(spread: FloatArray, mean: FloatArray) -> FloatArray:
    """Spread / (spread + |mean|), 0 to 1: ranks as spread / |mean| does, and is finite where the mean is 0.

    Where both are 0, all members call it a tie: 1, nothing is less certain. Any shape.
    """
    total = spread + np.abs(mean)
    return np.asarray(np.divide(spread, total, out=np.ones_like(total), where=total > 0))


def _measure(values: FloatArray | None, shares: FloatArray, clusters: IntArray) -> dict[str, Any]:
    if values is None:
        return {"auroc": None, "spearman": None, "deciles": None, "selective": None, "reason": ONE_MEMBER}
    ranks = rank_statistics(values, shares < 1, clusters)
    return {
        "auroc": None if ranks is None else ranks.auroc.to_json(),
        "spearman": None if ranks is None else ranks.spearman.to_json(),
        "deciles": [asdict(one) for one in deciles(values, shares)],
        "selective": asdict(selective_accuracy(values, shares)),
        "reason": None if ranks is not None else "all pairs are right, or all wrong, or all equally uncertain",
    }


def agreement(margins: FloatArray, member_names: Sequence[str]) -> dict[str, Any]:
    """How alike members are: share of pairs that two order alike, and correlation of their margins."""
    if len(member_names) < 2:
        return {"members": list(member_names), "matrix": None, "mean_correlation": None, "reason": ONE_MEMBER}
    correlation = mean_correlation(margins)
    return {
        "members": list(member_names),
        "matrix": member_agreement(margins).tolist(),
        "mean_correlation": correlation,
        "reason": None if correlation is not None else "a single pair, or a member whose margins are all equal",
    }
