"""Cross-validation of the default recipe on hh_harmless, train and dev together, and what phase 1 is worth.

    QUORUM_DATA=... python experiments/default_bundle/crossval.py --fold 0 [--phase1 none|shared_adapter|full]

Trains the recipe of config.yaml on every source, with hh_harmless replaced by the folds other than the one asked for
(by prompt), and scores that fold. Can be stopped at any time and goes on from its last checkpoint in runs/. Writes one
JSON file a fold to results/; `--summary` adds up what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quorum_model.calibration import fit_member_calibration, normalize
from quorum_model.prompts import PromptEncoder
from quorum_trainer.config import PhaseOne, TrainConfig, read_config
from quorum_trainer.data import EncodedPair, assign_folds, encode_pairs, read_pairs, read_source, split_held_out, take
from quorum_trainer.measure import accuracies
from quorum_trainer.prepare import find_base
from quorum_trainer.runs.run_folder import RunFolder
from quorum_trainer.training.ensemble import train_ensemble
from quorum_trainer.training.held_out import score_pairs
from quorum_trainer.training.loop import Surroundings
from quorum_trainer.training.reports import Evaluation, StepReport

HERE = Path(__file__).parent
NUM_FOLDS = 5
SOURCE = "hh_harmless"


def variant_of(config: TrainConfig, phase1: str) -> TrainConfig:
    """The recipe with another phase 1.

    full: the backbone itself, at a learning rate that suits it. none: phase 2 alone, for as many epochs as both had;
    on the layers that it has, since adapters on all layers would cost five times as much.
    """
    assert config.phase1 is not None
    assert config.phase2 is not None
    if phase1 == "shared_adapter":
        return config
    if phase1 == "full":
        full = {**config.phase1.model_dump(exclude={"lora"}), "method": "full", "lr": 5e-5, "head_lr": 5e-4}
        return config.model_copy(update={"phase1": PhaseOne.model_validate(full)})
    epochs = config.phase1.epochs + config.phase2.epochs
    changes = {"epochs": epochs, "lr": config.phase1.lr, "head_lr": config.phase1.head_lr}
    return config.model_copy(update={"phase1": None, "phase2": config.phase2.model_copy(update=changes)})


@dataclass(frozen=True, slots=True)
class Fold:
    """Training pairs of every source; held-out pairs of the other sources, to calibrate on; the fold's own to test."""

    train: list[EncodedPair]
    calibration: list[EncodedPair]
    test: list[EncodedPair]


def make_fold(config: TrainConfig, encoder: PromptEncoder, fold: int) -> Fold:
    """Split hh_harmless, train and dev together, by fold, and every other source as its config says."""
    train: list[EncodedPair] = []
    calibration: list[EncodedPair] = []
    for source in config.data:
        if source.name != SOURCE:
            kept, held_out = split_held_out(read_source(source).pairs, source.held_out, config.seed)
            kept = take(kept, source.max_pairs, config.seed)
            train += encode_pairs(encoder, kept, source.name, source.phase, source.weight)
            calibration += encode_pairs(encoder, held_out, source.name)
    folder = Path(os.environ["QUORUM_DATA"]) / "hh_harmless"
    pairs = [pair for name in ("train", "dev") for pair in read_pairs(folder / f"{name}_pairs.jsonl.gz")]
    encoded = encode_pairs(encoder, pairs, SOURCE)
    assigned = assign_folds(pairs, NUM_FOLDS, seed=config.seed)
    train += [pair for pair, own in zip(encoded, assigned, strict=True) if own != fold]
    return Fold(train, calibration, [pair for pair, own in zip(encoded, assigned, strict=True) if own == fold])


def run_fold(fold: int, phase1: str) -> dict[str, Any]:
    """Train and score one fold."""
    config = variant_of(read_config(HERE / "config.yaml"), phase1)
    base = find_base(config)
    data = make_fold(config, base.encoder, fold)
    folder = HERE / "runs" / f"{phase1}-{fold}"
    keeper = RunFolder(folder, checkpoint_seconds=120)
    keeper.claim(config, base.hashes(), resume=(folder / "config.yaml").exists())
    started = time.monotonic()
    trained = train_ensemble(config, base.start, data.train, Surroundings(keeper=keeper, reporter=Lines()))
    seconds = time.monotonic() - started
    calibration = (scores.numpy() for scores in score_pairs(trained.model, data.calibration))
    means, scales = fit_member_calibration(*calibration)
    chosen, rejected = (scores.numpy() for scores in score_pairs(trained.model, data.test))
    margins = normalize(chosen, means, scales) - normalize(rejected, means, scales)
    return {
        "fold": fold,
        "folds": NUM_FOLDS,
        "phase1": phase1,
        "seconds": round(seconds),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        **accuracies(margins, data.test)[SOURCE],
    }


class Lines:
    """A line every 20 steps of a phase."""

    def begin(self, stage: str, total: int, done: int) -> None:
        """Nothing to say yet."""

    def step(self, report: StepReport) -> None:
        """The mean loss."""
        if report.step % 20 == 0 or report.step == report.total:
            loss = sum(report.losses) / len(report.losses)
            print(f"{report.stage} {report.step}/{report.total} loss {loss:.4f}", flush=True)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Not asked for."""


def summary(phase1: str) -> dict[str, Any]:
    """Accuracies over all folds of a variant, weighted by pairs."""
    rows = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob(f"crossval-{phase1}-*.json"))]
    if not rows:
        return {"phase1": phase1, "folds_done": 0}
    pairs = sum(row["num_pairs"] for row in rows)
    keys = ("ensemble_mean", "members_average", "longer_wins", "shorter_wins")
    means = {key: round(sum(row[key] * row["num_pairs"] for row in rows) / pairs, 4) for key in keys}
    return {"phase1": phase1, "folds_done": len(rows), "num_pairs": pairs, **means}


def main() -> None:
    """Run one fold, or add up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fold", type=int, choices=range(NUM_FOLDS))
    parser.add_argument("--phase1", default="shared_adapter", choices=("none", "shared_adapter", "full"))
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    (HERE / "results").mkdir(exist_ok=True)
    if options.fold is not None:
        result = run_fold(options.fold, options.phase1)
        path = HERE / "results" / f"crossval-{options.phase1}-{options.fold}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result))
    if options.summary:
        print(json.dumps(summary(options.phase1)))


if __name__ == "__main__":
    main()
