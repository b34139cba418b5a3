"""PPO against proxies of a gold reward model: when does the proxy climb while the gold falls, and who holds out longer?

    QUORUM_DATA=... QUORUM_GENERATOR_PYTHON=... python experiments/ppo/run.py --out runs/ppo [--trial] [--only PREFIX]

Goes on where it stopped: what is in OUT is not made again, and a run whose log is in results/ is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from analysis import analyse, write_page
from plan import SEEDS, SMALL, TRIAL, PolicyRun, Size, ppo_config, runs
from servers import generator, scorer
from stages import make_gold, make_policy, make_prompts, make_proxies, quorum, read_records, sample, write_lines

RESULTS = Path(__file__).parent / "results"
_LABELLED = 4
"""Answers of a prompt, compared two by two."""
_AT_ONCE = 2
"""Runs that share the servers: while one waits for its completions the other one learns, each on one core."""


def main() -> None:
    """Stages that are missing, runs that are missing, then the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="models and runs; may be thrown away at the end")
    parser.add_argument("--only", default="", help="runs whose name begins so")
    parser.add_argument("--trial", action="store_true", help="tiny, in minutes; its results stay in OUT")
    parser.add_argument("--analyse", action="store_true", help="run nothing: write the page from the logs there are")
    options = parser.parse_args()
    out: Path = options.out.resolve()
    size, results = (TRIAL, out / "results") if options.trial else (SMALL, RESULTS)
    if not options.analyse:
        out.mkdir(parents=True, exist_ok=True)
        results.mkdir(parents=True, exist_ok=True)
        _run_all(out, results, size, options.only)
    write_page(analyse(results), results)


def _run_all(out: Path, results: Path, size: Size, only: str) -> None:
    python = Path(os.environ.get("QUORUM_GENERATOR_PYTHON", ".cache/generator/venv/bin/python"))
    if not python.exists():
        raise SystemExit("no vLLM here: make generator-env, or set QUORUM_GENERATOR_PYTHON")
    policy, gold = make_policy(out, size), make_gold(out, size)
    label_prompts, prompts = make_prompts(out, size)
    with generator(policy, python, out / "generator.log") as source:
        with scorer([gold], out / "gold.log") as server:
            labelled = sample(label_prompts, out / "labelled.jsonl", _LABELLED, size, source, server)
            candidates = sample(prompts, out / "candidates.jsonl", size.best_of, size, source, server)
        for seed in SEEDS:
            missing = [
                run for run in runs(seed) if run.name.startswith(only) and not (results / f"{run.name}.jsonl").exists()
            ]
            if not missing:
                continue
            proxies = make_proxies(out, size, labelled, seed)
            _score_candidates(candidates, proxies, results / f"candidates-{seed}.jsonl")
            with scorer([gold, *proxies], out / "scorer.log") as server, ThreadPoolExecutor(_AT_ONCE) as pool:
                started = [
                    pool.submit(_run_one, run, out, results, size, policy, prompts, source, server) for run in missing
                ]
                try:
                    for one in started:
                        one.result()
                finally:
                    pool.shutdown(cancel_futures=True)


def _run_one(
    run: PolicyRun, out: Path, results: Path, size: Size, policy: Path, prompts: Path, source: str, server: str
) -> None:
    started_s = time.monotonic()
    target, place = out / run.name, out / f"{run.name}.yaml"
    config = ppo_config(run, size, str(policy), str(prompts), source, server)
    place.write_text(yaml.safe_dump(config), encoding="utf-8")
    resume = ["--resume"] if (out / f"{run.name}.run" / "config.yaml").exists() else []
    quorum("ppo", str(place), "--out", str(target), *resume, threads=1)
    part = results / f".{run.name}.part"
    shutil.copy(target / "log.jsonl", part)
    part.rename(results / f"{run.name}.jsonl")
    shutil.rmtree(out / f"{run.name}.run")
    print(f"{run.name}: {time.monotonic() - started_s:.0f} s", file=sys.stderr, flush=True)


def _score_candidates(records: Path, proxies: list[Path], target: Path) -> None:
    """Best-of-N's pools: gold, and every proxy's members, of all candidates; without their texts."""
    if target.exists():
        return
    ordered = read_records(records)
    pools: list[dict[str, Any]] = [
        {"gold": [own["score"] for own in record["candidates"]], "proxies": {}} for record in ordered
    ]
    items = records.with_name("items.jsonl")
    flat = [(row, own["text"]) for row, record in enumerate(ordered) for own in record["candidates"]]
    sent = [(row, text) for row, text in flat if text.strip()]
    items.write_text(
        "".join(json.dumps({"prompt": ordered[row]["prompt"], "response": text}) + "\n" for row, text in sent),
        encoding="utf-8",
    )
    for proxy in proxies:
        scored = records.with_name(f"{proxy.name}.scores.jsonl")
        quorum(
            "score",
            "--bundle",
            str(proxy),
            "--dtype",
            "bfloat16",
            "--mode",
            "mean",
            "--in",
            str(items),
            "--out",
            str(scored),
        )
        members = iter(
            json.loads(line)["quorum"]["members"] for line in scored.read_text(encoding="utf-8").splitlines()
        )
        for row, text in flat:
            pools[row]["proxies"].setdefault(proxy.name, []).append(next(members) if text.strip() else None)
    write_lines(target, pools)


if __name__ == "__main__":
    main()
