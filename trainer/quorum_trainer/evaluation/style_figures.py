"""Figures of RM-Bench: the 3 x 3 matrix of styles and its easy, normal and hard parts, by domain and averaged.

    [ScoredRow] of six responses  --style_figures-->  JSON-ready figures by domain

Keys are documented in `report`. Knows no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quorum_trainer.evaluation.bootstrap import (
    FloatArray,
    IntArray,
    cluster_ids,
    interval,
    mean_estimate,
    resampled_means,
)
from quorum_trainer.evaluation.scores import ScoredRow
from quorum_trainer.evaluation.scorings import Scoring
from quorum_trainer.evaluation.styles import LEVELS, STYLES, level_shares, style_shares

AVERAGE = "average"
"""The mean over domains, each counting alike, as RM-Bench reports it."""


def style_figures(
    scored: Sequence[ScoredRow], scorings: Sequence[Scoring], member_names: Sequence[str]
) -> dict[str, Any]:
    """Figures by domain, and their average over domains.

    Args:
        scored: rows of six responses, see `read_style_rows`.
        scorings: see `choose_scorings`.
        member_names: K of them.
    """
    members = np.stack([one.members for one in scored], axis=1)
    chars = np.array([[float(len(text)) for text in one.row.responses] for one in scored])
    rewards: dict[str, dict[str, FloatArray]] = {
        "scorings": {scoring.label: scoring.rewards(members) for scoring in scorings},
        "members": dict(zip(member_names, members, strict=True)),
        "baselines": {"longer": chars, "shorter": -chars, "random": np.zeros_like(chars)},
    }
    domains = _domains(scored)
    return {
        "styles": list(STYLES),
        "num_prompts": {name: int(rows.sum()) for name, (rows, _) in domains.items()},
        **{
            kind: {name: _by_domain(style_shares(values), domains) for name, values in named.items()}
            for kind, named in rewards.items()
        },
    }


def _domains(scored: Sequence[ScoredRow]) -> dict[str, tuple[np.ndarray[Any, Any], IntArray]]:
    """Rows (P,) and their prompts' numbers, by domain."""
    tags = np.array([one.row.tags["domain"] for one in scored])
    keys = [one.row.prompt_key for one in scored]
    result = {}
    for domain in sorted(set(tags.tolist())):
        rows = tags == domain
        result[domain] = (rows, cluster_ids([key for key, kept in zip(keys, rows, strict=True) if kept]))
    return result


def _by_domain(shares: FloatArray, domains: dict[str, tuple[np.ndarray[Any, Any], IntArray]]) -> dict[str, Any]:
    """Level estimates and matrices of one reward.

    Args:
        shares: shape (P, 3, 3).
        domains: see `_domains`.
    """
    figures: dict[str, Any] = {}
    resampled: dict[str, list[FloatArray]] = {}
    for stream, (domain, (rows, clusters)) in enumerate(domains.items()):
        levels = level_shares(shares[rows])
        figures[domain] = {name: mean_estimate(values, clusters).to_json() for name, values in levels.items()}
        figures[domain]["matrix"] = shares[rows].mean(axis=0).tolist()
        for name, values in levels.items():
            resampled.setdefault(name, []).append(resampled_means(values, clusters, stream))
    figures[AVERAGE] = {
        name: interval(
            float(np.mean([figures[domain][name]["value"] for domain in domains])), np.mean(resampled[name], axis=0)
        ).to_json()
        for name in (*LEVELS, "average")
    }
    figures[AVERAGE]["matrix"] = np.mean([figures[domain]["matrix"] for domain in domains], axis=0).tolist()
    return figures
