"""What an ensemble knows of pairs, and what its std knows of texts that no system should have written.

Ensemble (D, K, N), Texts  --on_pairs, on_texts-->  accuracy, ECE, AUROCs, on average over draws
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ensembles import Ensemble, FloatArray
from sklearn.metrics import roc_auc_score
from texts import Texts

from quorum_model.calibration import fit_pair_temperature
from quorum_trainer.evaluation.bootstrap import Estimate, cluster_ids, mean_estimate
from quorum_trainer.evaluation.reliability import reliability


@dataclass(frozen=True, slots=True)
class PairKnowledge:
    """On one set of pairs. ece: with tau from the selection pairs. AUROCs against the mean being wrong; None for K = 1.

    by_z: of std / |mean margin|. by_closeness: of -|mean margin| alone. correlation: of two members' margins, a mean
    over pairs of them; None for K = 1.
    """

    num_pairs: int
    accuracy: Estimate
    members_accuracy: float
    longer: float
    ece: float
    by_std: float | None
    by_z: float | None
    by_closeness: float
    correlation: float | None


def on_pairs(ensemble: Ensemble, texts: Texts, name: str) -> PairKnowledge:
    """Every figure of a set of pairs but the interval is a mean over draws."""
    rows = texts.pairs[name]
    margins = _margins(ensemble, rows)
    chosen_by = _margins(ensemble, texts.pairs["select"])
    eces = [
        reliability(margin, fit_pair_temperature(other)).ece for margin, other in zip(margins, chosen_by, strict=True)
    ]
    means = margins.mean(axis=1)
    longer = [np.sign(len(texts.items[one][1]) - len(texts.items[other][1])) for _, one, other in rows]
    many = ensemble.size > 1 and margins.shape[1] > 1
    stds = margins.std(axis=1, ddof=1) if many else None
    return PairKnowledge(
        num_pairs=len(rows),
        accuracy=mean_estimate(_right(means).mean(axis=0), cluster_ids([row[0] for row in rows])),
        members_accuracy=float(_right(margins).mean()),
        longer=float(np.mean((np.array(longer) + 1) / 2)),
        ece=float(np.mean(eces)),
        by_std=None if stds is None else _mean_auroc(means <= 0, stds),
        by_z=None if stds is None else _mean_auroc(means <= 0, stds / np.maximum(np.abs(means), 1e-12)),
        by_closeness=_mean_auroc(means <= 0, -np.abs(means)),
        correlation=float(np.mean([_mean_correlation(margin) for margin in margins])) if many else None,
    )


def on_texts(ensemble: Ensemble, texts: Texts, name: str) -> dict[str, float]:
    """AUROC of the std, and of the mean turned round, for telling a set of texts from real answers to dev prompts."""
    real = [column for pool in texts.pools["dev"] for column in pool.columns]
    columns = [*texts.others[name], *real]
    strange = np.arange(len(columns)) < len(texts.others[name])
    scores = ensemble.members[:, :, columns]
    stds, means = scores.std(axis=1, ddof=1), scores.mean(axis=1)
    truth = np.broadcast_to(strange, stds.shape)
    return {"std": _mean_auroc(truth, stds), "low_mean": _mean_auroc(truth, -means)}


def _margins(ensemble: Ensemble, rows: Sequence[tuple[str, int, int]]) -> FloatArray:
    """Shape (D, K, P)."""
    chosen, rejected = [row[1] for row in rows], [row[2] for row in rows]
    return ensemble.members[:, :, chosen] - ensemble.members[:, :, rejected]


def _mean_correlation(margins: FloatArray) -> float:
    """Over pairs of members; margins: (K, P)."""
    between = np.corrcoef(margins)
    return float(between[np.triu_indices(len(between), 1)].mean())


def _right(margins: FloatArray) -> FloatArray:
    """1, or a half for a tie."""
    return (np.sign(margins) + 1) / 2


def _mean_auroc(is_wrong: FloatArray, values: FloatArray) -> float:
    known = [
        roc_auc_score(wrong, value)
        for wrong, value in zip(is_wrong, values, strict=True)
        if 0 < wrong.sum() < wrong.size
    ]
    return float(np.mean(known)) if known else float("nan")
