"""A step in figures, and the file that keeps them.

    [Sample]  --sample_figures-->  {name: number}  --StepLog.add-->  log.jsonl, one line a step

Names are stable: reward/…, uncertainty/…, kl/…, loss/…, policy/…, value/…, length/…, time/….
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from quorum_trainer.ppo.samples import Reward, Sample


def sample_figures(samples: Sequence[Sample], *, std_limit: float | None) -> dict[str, float]:
    """What a step's completions are like.

    Args:
        samples: all of them, those without a score too.
        std_limit: the bundle's 99th percentile of std: what lies beyond is out of range. None: not known.

    Returns:
        Means over the completions that have the number; a name without any is left out.
    """
    scored = [sample.reward for sample in samples if sample.reward.score is not None]
    figures = {
        "reward/score": _mean(one.score for one in scored),
        "reward/mean": _mean(one.mean for one in scored),
        "reward/score_std": statistics.stdev([one.score or 0.0 for one in scored]) if len(scored) > 1 else None,
        "reward/gold": _mean(sample.gold.score for sample in samples if sample.gold is not None),
        "reward/unscored": 1 - len(scored) / len(samples),
        "uncertainty/std": _mean(one.std for one in scored),
        "uncertainty/mean_minus_score": _mean(_gap(one) for one in scored),
        "uncertainty/out_of_range": None
        if std_limit is None
        else _mean(float(one.std > std_limit) for one in scored if one.std is not None),
        "length/mean": _mean(float(len(sample.draw.token_ids)) for sample in samples),
        "length/ended": _mean(float(sample.draw.ended) for sample in samples),
        "policy/distinct": len({(sample.place, sample.draw.token_ids) for sample in samples}) / len(samples),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _gap(reward: Reward) -> float | None:
    return None if reward.mean is None or reward.score is None else reward.mean - reward.score


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


class StepLog:
    """JSON lines of a run, one a step.

    Args:
        path: the file.
        steps: how many steps are done: later lines are of steps that are done again, and are cut away.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self._path = path
        kept = path.read_bytes().splitlines(keepends=True)[:steps] if path.exists() else []
        self.lines: list[dict[str, Any]] = [json.loads(raw) for raw in kept]
        self._size = sum(map(len, kept))

    def add(self, line: dict[str, Any]) -> None:
        """One line more, on the disk when this returns."""
        raw = json.dumps(line).encode() + b"\n"
        with self._path.open("ab") as file:
            file.truncate(self._size)
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(raw)
        self.lines.append(line)

    def series(self, name: str) -> list[Any]:
        """A figure over the steps; None where a step has none."""
        return [line.get(name) for line in self.lines]
