"""The report of an evaluation: one JSON object with every figure.

    files, bundle  --read, score, compute-->  report

Keys (figures are shares or in units of gold; intervals are 95 %, by a bootstrap over prompts):

    bundle       name, version, source, kind, num_members, pair_temperature, default_mode, default_beta,
                   default_scoring: its label
    settings     device, dtype, scorings {label: {mode, beta, center}}, interval {level, resamples, unit, seed}
    files        [{label, name, sha256, kind, num_rows, num_ties, num_responses, num_truncated}]
    warnings     [text]
    pairs        null or {group: {num_pairs, num_prompts,
                   accuracy     {scorings {label: E}, members {name: E}, members_average, baselines {name: E}},
                   calibration  {bundle | cross_fitted: {tau | taus, ece, brier, nll, bins}, reason},
                   uncertainty  {margin_std | score_std | closeness | relative_std: {auroc: E, spearman: E, deciles,
                     selective, reason}},
                   agreement    {members, matrix, mean_correlation, reason}}}
    rm_bench     null or {styles, num_prompts {domain}, scorings | members | baselines {name: {domain | average:
                   {easy | normal | hard | average: E, matrix}}}}
    best_of_n    null or {group: {num_pools, num_prompts, smallest_pool, largest_pool,
                   scorings | members | baselines {name: {n: E of gold, num_pools, chars: E}},
                   curves  null or {num_subsets, scorings | members | baselines {name: {n, gold: B, chars: B,
                     reward: B (one policy, uncentred)}}},
                   policy  null or {n, kl, fits {scorings | members | baselines {name: null or {r0, alpha: E and
                     standard_error, beta: the same, peak_kl, r_squared, num_sizes}}}}}}
    usage        seconds

E is {value, low, high}; B the same with lists, a number for every n of a curve. Lengths are in characters, kl in nats.
A group is "all", a file's label, or "label: field=value"; the last has pairs' accuracy and pools' figures by n alone.
What cannot be computed is null, with the reason beside it. Knows neither tables nor plots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quorum_client.errors import InvalidRequest
from quorum_model.bundle.manifest import Manifest
from quorum_trainer.data import hash_file
from quorum_trainer.evaluation.bootstrap import LEVEL, RESAMPLES, SEED
from quorum_trainer.evaluation.pair_figures import pair_figures
from quorum_trainer.evaluation.pool_figures import pool_figures
from quorum_trainer.evaluation.rows import Row, label_files, read_pair_rows, read_pool_rows, read_style_rows
from quorum_trainer.evaluation.scores import OpenBundle, ScoredRow
from quorum_trainer.evaluation.scorings import Scoring
from quorum_trainer.evaluation.style_figures import style_figures

KINDS = ("pairs", "rm_bench", "best_of_n")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of one of the `KINDS`, read. num_ties: pairs left out because neither side is better."""

    label: str
    path: Path
    kind: str
    sha256: str
    rows: list[Row]
    num_ties: int = 0


@dataclass(slots=True)
class Evaluated:
    """Scored files of one bundle, ready for figures. is_one_policy: of each pool file, see `pool_figures`."""

    opened: OpenBundle
    scorings: list[Scoring]
    files: list[DataFile]
    is_one_policy: bool = False
    scored: dict[str, list[ScoredRow]] = field(default_factory=dict)


def read_files(
    pairs: Sequence[Path], rm_bench: Sequence[Path], best_of_n: Sequence[Path], *, is_one_policy: bool = False
) -> list[DataFile]:
    """Read every file, before any time is spent on scoring.

    Raises:
        DataError: a file or line that cannot be used; pools of several generators that are said to be one policy's.
        InvalidRequest: no file at all, or `is_one_policy` without pools.
    """
    paths = [*pairs, *rm_bench, *best_of_n]
    if not paths:
        raise InvalidRequest("nothing to evaluate on: give --pairs, --rm-bench or --bon")
    if is_one_policy and not best_of_n:
        raise InvalidRequest("one-policy: is about pools; give --bon")
    kinds = ["pairs"] * len(pairs) + ["rm_bench"] * len(rm_bench) + ["best_of_n"] * len(best_of_n)
    return [
        _read(label, path, kind, is_one_policy=is_one_policy)
        for label, path, kind in zip(label_files(paths), paths, kinds, strict=True)
    ]


def _read(label: str, path: Path, kind: str, *, is_one_policy: bool) -> DataFile:
    if kind == "pairs":
        rows, num_ties = read_pair_rows(path, label)
        return DataFile(label, path, kind, hash_file(path), rows, num_ties)
    rows = (
        read_style_rows(path, label) if kind == "rm_bench" else read_pool_rows(path, label, is_one_policy=is_one_policy)
    )
    return DataFile(label, path, kind, hash_file(path), rows)


def build_report(evaluated: Evaluated, source: str, seconds: float) -> dict[str, Any]:
    """Every figure; keys as above.

    Args:
        evaluated: files with their scores, by kind.
        source: what the bundle was asked for by.
        seconds: that scoring took.
    """
    opened, scorings = evaluated.opened, evaluated.scorings
    manifest, version = opened.bundle.manifest, opened.bundle.version
    names = [member.name for member in manifest.members]
    pairs, styles, pools = (evaluated.scored.get(kind) for kind in KINDS)
    every = [one for kind in KINDS for one in evaluated.scored.get(kind, [])]
    return {
        "bundle": {
            "name": manifest.name,
            "version": version,
            "source": source,
            "kind": manifest.kind,
            "num_members": len(names),
            "pair_temperature": manifest.pair_temperature,
            "default_mode": manifest.default_mode,
            "default_beta": manifest.default_beta,
            "default_scoring": Scoring(manifest.default_mode, manifest.default_beta).label,
        },
        "settings": {
            "device": opened.scorer.device,
            "dtype": opened.scorer.dtype,
            "scorings": {scoring.label: scoring.to_json() for scoring in scorings},
            "interval": {"level": LEVEL, "resamples": RESAMPLES, "unit": "prompt", "seed": SEED},
        },
        "files": [_describe(file, every) for file in evaluated.files],
        "warnings": warnings_of(manifest, evaluated.files),
        "pairs": pair_figures(pairs, scorings, manifest.pair_temperature, names) if pairs else None,
        "rm_bench": style_figures(styles, scorings, names) if styles else None,
        "best_of_n": pool_figures(pools, scorings, names, is_one_policy=evaluated.is_one_policy) if pools else None,
        "usage": {"seconds": round(seconds, 1)},
    }


def warnings_of(manifest: Manifest, files: Sequence[DataFile]) -> list[str]:
    """What makes figures look better than they are: files that the members were trained on."""
    trained_on = {data.sha256: data.name for data in manifest.training_data}
    return [
        f"{file.label} is training data of this bundle ({trained_on[file.sha256]}): its figures are not held-out ones"
        for file in files
        if file.sha256 in trained_on
    ]


def _describe(file: DataFile, scored: Sequence[ScoredRow]) -> dict[str, Any]:
    own = [one for one in scored if one.row.file == file.label]
    return {
        "label": file.label,
        "name": file.path.name,
        "sha256": file.sha256,
        "kind": file.kind,
        "num_rows": len(file.rows),
        "num_ties": file.num_ties,
        "num_responses": sum(len(one.row.responses) for one in own),
        "num_truncated": sum(one.num_truncated for one in own),
    }
