"""All figures of the comparison, from the scores that are there.

Texts, results/scores  --analyse-->  JSON-ready figures: baselines, one entry an ensemble, the choice a noise level
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from ensembles import Ensemble, ensembles
from knowledge import on_pairs, on_texts
from picks import baselines, curve, gold_of_members, gold_of_picks, grid, two_way, without_systems
from texts import Texts

from quorum_trainer.evaluation.bootstrap import Estimate
from quorum_trainer.evaluation.scorings import MEAN, Scoring
from quorum_trainer.evaluation.selection import select_scoring

SIZES = (1, 2, 4, 8, 16, 32, 56)
CURVES = (
    MEAN, Scoring("min"), Scoring("lcb", 1.0), Scoring("lcb", 4.0), Scoring("uwo", 1.0),
    Scoring("min", None, "group"), Scoring("lcb", 1.0, "group"), Scoring("lcb", 4.0, "group"),
)  # fmt: skip


def analyse(texts: Texts) -> dict[str, Any]:
    """Everything the page shows. Scorings are chosen on prompts of `select`; dev is only looked at."""
    dev = texts.pools["dev"]
    figures: dict[str, Any] = {
        "sizes": SIZES,
        "baselines": {
            name: {key: values.mean(axis=0).tolist() for key, values in baselines(pools, SIZES).items()}
            for name, pools in (("dev", dev), ("dev_without", without_systems(dev)))
        },
        "ensembles": [],
    }
    for ensemble in ensembles(texts):
        figures["ensembles"].append(describe(ensemble, texts))
        print(f"{ensemble.kind} {ensemble.size}, noise {ensemble.noise}", flush=True)
    figures["choices"] = [
        choose(figures["ensembles"], noise) for noise in sorted({e["noise"] for e in figures["ensembles"]})
    ]
    return figures


def describe(ensemble: Ensemble, texts: Texts) -> dict[str, Any]:
    """One kind, size and noise."""
    scorings = grid(ensemble.members.shape[1])
    select, dev = texts.pools["select"], texts.pools["dev"]
    without = without_systems(dev)
    chosen_by = gold_of_picks(ensemble, select, scorings)
    picked, restricted = gold_of_picks(ensemble, dev, scorings), gold_of_picks(ensemble, without, scorings)
    alone = gold_of_members(ensemble, dev)
    clusters = np.arange(len(select))
    choices = [
        scorings.index(select_scoring(scorings, chosen_by[:, draw], clusters).chosen)
        for draw in range(len(ensemble.members))
    ]
    own = np.arange(len(choices))
    selected, selected_without = picked[choices, own], restricted[choices, own]
    many = ensemble.members.shape[1] > 1
    return {
        "noise": ensemble.noise,
        "kind": ensemble.kind,
        "size": ensemble.size,
        "draws": len(ensemble.members),
        "cost": {name: getattr(ensemble.cost, name) for name in ("seconds", "parameters", "megabytes", "passes")},
        "select": float(chosen_by[choices, own].mean()),
        "gold": {
            "mean": _json(two_way(picked[0])),
            "selected": _json(two_way(selected)),
            "selected_over_members": _json(two_way(selected - alone)),
            "mean_over_members": _json(two_way(picked[0] - alone)),
            "chosen": dict(Counter(scorings[choice].label for choice in choices)),
        },
        "gold_without": {"mean": _json(two_way(restricted[0])), "selected": _json(two_way(selected_without))},
        "scorings": {
            scoring.label: {
                "gold": float(picked[index].mean()),
                "over_mean": _json(two_way(picked[index] - picked[0])),
                "select": float(chosen_by[index].mean()),
            }
            for index, scoring in enumerate(scorings)
        },
        "curves": {
            scoring.label: curve(ensemble, dev, scoring, SIZES).mean(axis=(1, 2)).tolist()
            for scoring in CURVES
            if many or scoring == MEAN
        },
        "pairs": {name: _knowledge(ensemble, texts, name) for name in texts.pairs if name != "select"},
        "texts": {name: on_texts(ensemble, texts, name) for name in texts.others} if many else None,
    }


def choose(entries: list[dict[str, Any]], noise: int) -> dict[str, Any]:
    """The kind and size with the most gold on the selection prompts, each with the scoring chosen there."""
    best = max((entry for entry in entries if entry["noise"] == noise), key=lambda entry: entry["select"])
    return {key: best[key] for key in ("noise", "kind", "size", "select", "gold", "gold_without")}


def _knowledge(ensemble: Ensemble, texts: Texts, name: str) -> dict[str, Any]:
    known = on_pairs(ensemble, texts, name)
    return {
        **{key: getattr(known, key) for key in known.__slots__ if key != "accuracy"},
        "accuracy": _json(known.accuracy),
    }


def _json(estimate: Estimate) -> dict[str, float | None]:
    return estimate.to_json()
