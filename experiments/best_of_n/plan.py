"""The experiment as data: what is trained, on how much, with which noise. Knows no files and trains nothing.

A *unit* is one training run, after which every text is scored by its members. Ensembles of every size are then drawn
from the members' scores, so that sizes, modes and numbers of candidates cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TRAIN_PAIRS = 1200
MAX_LENGTH = 256
NOISES = (0, 25)
"""Percent of training pairs, held-out ones included, whose label is turned round: a user's noise is everywhere."""
NUM_LORA, NUM_FULL, CHUNK = 20, 10, 5
MERGED_SIZES = (3, 5, 8)

_OPTIMISER = {"batch_pairs": 16, "micro_batch_pairs": 4}
_FULL = {"method": "full", "epochs": 2, "lr": 5e-5, "head_lr": 5e-4, **_OPTIMISER}
_SHARED = {
    "method": "shared_adapter", "epochs": 2, "lr": 3e-4, "head_lr": 1e-3, "lora": {"rank": 16, "alpha": 32},
    **_OPTIMISER,
}  # fmt: skip
_ADAPTER = {"rank": 16, "alpha": 32, "dropout": 0.1, "layers": "top-third"}
_OWN = {"epochs": 1, "lr": 3e-4, "order": "own", "lora": _ADAPTER, **_OPTIMISER}


@dataclass(frozen=True, slots=True)
class Unit:
    """One training run, or one merge.

    name: of its files. noise: percent. members: how many it gives. config: of `quorum train`, without data; None for a
    merge. start_from: the unit and its members whose backbone and heads it starts from, or that are merged.
    """

    name: str
    noise: int
    members: int
    config: dict[str, Any] | None
    start_from: tuple[str, range] | None = None


def units() -> list[Unit]:
    """All of them, in the order in which they are worth having: first what the comparison cannot do without."""
    chosen = []
    for noise in NOISES:
        linear = f"linear-{noise}"
        chosen.append(Unit(linear, noise, NUM_LORA, {"kind": "linear", "phase1": _SHARED}))
        chosen += [
            Unit(
                f"lora-{noise}-{chunk}", noise, CHUNK,
                {"kind": "lora", "phase2": _OWN, "diversity": {"bootstrap": True}, "seed": chunk},
                (linear, range(chunk * CHUNK, (chunk + 1) * CHUNK)),
            )
            for chunk in range(NUM_LORA // CHUNK)
        ]  # fmt: skip
        chosen += [_full(noise, seed) for seed in range(NUM_FULL // 2)]
    for noise in NOISES:
        chosen += [_full(noise, seed) for seed in range(NUM_FULL // 2, NUM_FULL)]
        alone = {**_OWN, "epochs": 3}
        chosen.append(
            Unit(f"alone-{noise}", noise, CHUNK, {"kind": "lora", "phase2": alone, "diversity": {"bootstrap": True}})
        )
        # Of the first chunks: a merge needs its members in one bundle.
        chosen += [Unit(f"merged-{noise}-{size}", noise, 1, None, ("lora", range(size))) for size in MERGED_SIZES]
    return chosen


def named(name: str) -> Unit:
    """The unit of that name."""
    return next(unit for unit in units() if unit.name == name)


def _full(noise: int, seed: int) -> Unit:
    return Unit(f"full-{noise}-{seed}", noise, 1, {"kind": "single", "phase1": _FULL, "seed": seed})
