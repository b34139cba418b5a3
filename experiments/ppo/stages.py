"""What happens before the runs: policy, gold model, labels, proxies, Best-of-N's candidates. Each is made once.

QUORUM_DATA  -->  policy/  gold/  labelled.jsonl  candidates.jsonl       once
                  labels-NOISE-SEED.jsonl  KIND-NOISE-SEED/            for every seed
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from plan import MODES, NOISES, Size, proxy_name, reward_config


def quorum(*arguments: str, threads: int | None = None) -> None:
    """Run a command of ours; what it says goes to this run's standard error."""
    command = [sys.executable, "-m", "quorum_client.cli", *arguments]
    environ = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environ)  # noqa: S603 - our own command


def rows(name: str) -> Iterator[dict[str, Any]]:
    """Of a file of the data."""
    with gzip.open(Path(os.environ["QUORUM_DATA"]) / name, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    part.rename(path)


def make_policy(out: Path, size: Size) -> Path:
    """A causal model of three million weights, by `quorum sft`."""
    target = out / "policy"
    if target.exists():
        return target
    data = Path(os.environ["QUORUM_DATA"]) / "sft"
    names = ("alpaca_eval_train_prompts", "gpteacher_roleplay")
    new_model = {
        "layers": size.layers,
        "hidden": 256,
        "ffn": 704,
        "heads": 4,
        "key_heads": 2,
        "vocab_size": 4096,
        "max_positions": 1024,
    }
    config = {
        "name": "policy", "new_model": new_model, "max_length": 192, "batch": 16, "epochs": size.sft_epochs, "lr": 2e-3,
        "data": [
            {"name": name, "path": str(data / f"{name}.jsonl.gz"), "max_examples": size.sft_examples // len(names)}
            for name in names
        ],
    }  # fmt: skip
    _run("sft", config, target)
    return target


def make_prompts(out: Path, size: Size) -> tuple[Path, Path]:
    """(prompts to label, prompts to optimise and measure on): short ones, none in both, in a fixed random order."""
    paths = out / "label_prompts.jsonl", out / "prompts.jsonl"
    if not all(path.exists() for path in paths):
        found = {
            row["prompt"]: None
            for row in rows("sft/alpaca_eval_train_prompts.jsonl.gz")
            if isinstance(row["prompt"], str) and 8 < len(row["prompt"]) < 3 * size.prompt_tokens
        }
        chosen = list(found)
        random.Random(0).shuffle(chosen)  # noqa: S311 - a sample, not a secret
        split = chosen[size.prompts :][: size.label_prompts], chosen[: size.prompts]
        if len(split[0]) < size.label_prompts:
            raise SystemExit(f"{len(split[0])} prompts are left to label, not {size.label_prompts}: ask for fewer")
        for path, own in zip(paths, split, strict=True):
            write_lines(path, ({"prompt_id": str(number), "prompt": prompt} for number, prompt in enumerate(own)))
    return paths


def make_gold(out: Path, size: Size) -> Path:
    """The model that is taken for the truth: fine-tuned whole, on more pairs than any proxy sees, and on real ones."""
    target = out / "gold"
    if not target.exists():
        pairs = out / "gold_pairs.jsonl"
        chosen = list(rows("alpaca_eval/train_pairs.jsonl.gz"))
        random.Random(0).shuffle(chosen)  # noqa: S311
        write_lines(pairs, ({k: row[k] for k in ("prompt", "chosen", "rejected")} for row in chosen[: size.gold_pairs]))
        _train("gold", "single", pairs, target, size, seed=0)
    return target


def sample(prompts: Path, target: Path, n: int, size: Size, generator: str, server: str) -> Path:
    """N answers of the policy to each prompt, with the gold's scores: `quorum best-of-n`'s records."""
    done = sum(1 for _ in target.open()) if target.exists() else 0
    if done < sum(1 for _ in prompts.open()):
        quorum(
            "best-of-n", "--prompts", str(prompts), "--out", str(target), "--url", server, "--generator-url", generator,
            "--model", "base", "--n", str(n), "--max-tokens", str(size.max_new_tokens), "--ensemble", "gold",
            "--mode", "mean", "--center", "none",
        )  # fmt: skip
    return target


def read_records(path: Path) -> list[dict[str, Any]]:
    """By prompt: the file has them in the order in which they were done, which is another one every time."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(records, key=lambda record: int(record["prompt_id"]))


def make_labels(records: Path, out: Path, noise: int, seed: int) -> Path:
    """Pairs of the policy's answers, the one that the gold scores higher chosen, some turned round.

    A prompt's distinct answers are paired off at random: no answer is in two pairs.
    """
    target = out / f"labels-{noise}-s{seed}.jsonl"
    if target.exists():
        return target
    pairs = []
    for record in read_records(records):
        scored = {own["text"]: own["score"] for own in record["candidates"] if own["score"] is not None}
        generator = random.Random(f"labels/{seed}/{record['prompt_id']}")  # noqa: S311
        answers = generator.sample(sorted(scored), len(scored))
        for one, other in zip(answers[::2], answers[1::2], strict=False):
            worse, better = sorted((one, other), key=lambda text: scored[text])
            if generator.random() < noise / 100:
                worse, better = better, worse
            pairs.append({"prompt": record["prompt"], "chosen": better, "rejected": worse})
    write_lines(target, pairs)
    return target


def make_proxies(out: Path, size: Size, records: Path, seed: int) -> list[Path]:
    """One of each kind and noise."""
    targets = []
    for noise in NOISES:
        labels = make_labels(records, out, noise, seed)
        for kind in MODES:
            name = proxy_name(kind, noise, seed)
            targets.append(out / name)
            if not targets[-1].exists():
                _train(name, kind, labels, targets[-1], size, seed)
    return targets


def _train(name: str, kind: str, pairs: Path, target: Path, size: Size, seed: int) -> None:
    data = [{"name": "pairs", "path": str(pairs), "held_out": 0.1}]
    _run("train", {"name": name, "data": data, **reward_config(kind, size, seed)}, target)


def _run(command: str, config: dict[str, Any], target: Path) -> None:
    place = target.with_name(f"{target.name}.yaml")
    place.write_text(yaml.safe_dump(config), encoding="utf-8")
    begun = target.with_name(f"{target.name}.run")
    resume = ["--resume"] if (begun / "config.yaml").exists() else []
    quorum(command, str(place), "--out", str(target), *resume)
