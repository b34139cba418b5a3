"""Ensembles of every kind and size, drawn from the trained pools of members.

    results/scores/*.npz  --read_pools-->  Pools: member scores (M, N) by noise and kind  --draw-->  Ensemble (D, K, N)

An ensemble is drawn many times (without repeating a member in it), so that a figure of its kind and size does not hang
on the luck of one draw.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from plan import CHUNK, MERGED_SIZES, NOISES, NUM_FULL, NUM_LORA
from texts import Texts
from units import SCORES, Scores, read_scores

MOST_DRAWS = 20
SIZES = (1, 3, 5, 8)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one ensemble: processor seconds of its training, parameters and megabytes beside the backbone that all share.

    passes: over the same tokens, in passes of one model (layers below the adapted ones run once).
    """

    seconds: float | None
    parameters: float
    megabytes: float
    passes: float


@dataclass(frozen=True, slots=True)
class Ensemble:
    """One kind, size and noise.

    members: calibrated scores of D draws, shape (D, K, N); K = 1 for a merged one, whatever its size. alone: the single
    members that it is compared with, shape (D, K, N): its own, or those that were merged.
    """

    noise: int
    kind: str
    size: int
    members: FloatArray
    alone: FloatArray
    cost: Cost


def ensembles(texts: Texts) -> Iterator[Ensemble]:
    """Those whose units are there, one after another: together they would not fit into memory."""
    for noise in NOISES:
        for kind in ("full", "linear", "lora", "alone"):
            parts = _parts(noise, kind, texts)
            if not parts:
                continue
            scores = np.concatenate([part.calibrated for part in parts])
            for size in SIZES:
                if size <= len(scores):
                    draws = draw(len(scores), size)
                    name = kind if kind != "full" else "single" if size == 1 else "singles"
                    cost = _cost(kind, size, parts, noise, texts)
                    yield Ensemble(noise, name, size, scores[draws], scores[draws], cost)
        for size in MERGED_SIZES:
            merged = _parts(noise, f"merged-{size}", texts)
            if merged:
                cost = _cost("merged", size, merged, noise, texts)
                alone = np.concatenate([part.calibrated for part in _parts(noise, "lora", texts)])[None, :size]
                yield Ensemble(noise, "merged", size, merged[0].calibrated[None], alone, cost)


def draw(pool: int, size: int) -> NDArray[np.int64]:
    """Distinct subsets of a pool, shape (D, size): all, if they are few."""
    rng = random.Random(1000 * pool + size)  # noqa: S311 - no secret
    if size == 1:
        return np.arange(pool)[:, None]
    subsets = list(itertools.combinations(range(pool), size))
    return np.array(rng.sample(subsets, min(MOST_DRAWS, len(subsets))))


def _parts(noise: int, kind: str, texts: Texts) -> list[Scores]:
    """Scores of the units of a pool that are there."""
    names = {
        "full": [f"full-{noise}-{seed}" for seed in range(NUM_FULL)],
        "linear": [f"linear-{noise}"],
        "lora": [f"lora-{noise}-{chunk}" for chunk in range(NUM_LORA // CHUNK)],
        "alone": [f"alone-{noise}"],
        **{f"merged-{size}": [f"merged-{noise}-{size}"] for size in MERGED_SIZES},
    }
    return [read_scores(name, texts) for name in names[kind] if (SCORES / f"{name}.npz").exists()]


_NUM_LAYERS, _ADAPTED = 6, 2
_HEAD_PARAMETERS = 384 * 384 + 384 + 384 + 1
"""Of a member: BERT's head is a dense layer and a linear one."""


def _cost(kind: str, size: int, parts: list[Scores], noise: int, texts: Texts) -> Cost:
    """What K members take; members of a pool that was trained together share its seconds equally."""

    def mean(key: str) -> float | None:
        values = [part.cost[key] for part in parts]
        return None if None in values else float(np.mean(values))

    members = len(parts[0].raw)
    seconds, parameters, megabytes = mean("seconds"), mean("parameters") or 0.0, (mean("bytes") or 0.0) / 1e6
    if kind == "full":
        return Cost(seconds and seconds * size, parameters * size, megabytes * size, size)
    if kind == "linear":
        # One training gives any number of heads.
        spare = (members - size) * _HEAD_PARAMETERS
        return Cost(seconds, parameters - spare, megabytes - spare * 4 / 1e6, 1.0)
    first = read_scores(f"linear-{noise}", texts).cost
    if kind == "merged":
        trained = read_scores(f"lora-{noise}-0", texts).cost["seconds"] * size / CHUNK
        return Cost(first["seconds"] + trained + (seconds or 0.0), parameters, megabytes, 1.0)
    passes = (_NUM_LAYERS - _ADAPTED + size * _ADAPTED) / _NUM_LAYERS
    before = 0.0 if kind == "alone" else first["seconds"]
    # The shared adapter, which every member needs.
    shared = 0.0 if kind == "alone" else float(first["parameters"] - NUM_LORA * _HEAD_PARAMETERS)
    own = (parameters - shared) / members * size + shared
    return Cost(seconds and before + seconds / members * size, own, megabytes / parameters * own, passes)
