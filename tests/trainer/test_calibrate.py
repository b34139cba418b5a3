"""`quorum calibrate`: a new version with the same weights, other defaults, and the figures behind them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from quorum_client.errors import InvalidRequest, QuorumError
from quorum_client.types import RankRequest, ScoreItem, ScoreRequest
from quorum_model.bundle.read import Bundle, read_bundle
from quorum_model.calibration import fit_pair_temperature
from quorum_model.local import LocalScorer
from quorum_trainer.calibrate import calibrate, carry_over
from tests.server.tiny_bundle import make_bert_bundle

app = typer.Typer()
app.command()(calibrate)

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def responses(seed: int, count: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(LETTERS), rng.integers(2, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bert_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def local(bundle: Bundle) -> LocalScorer:
    return LocalScorer.open(str(bundle.path), device="cpu")


@pytest.fixture(scope="module")
def planted(local: LocalScorer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pools whose gold is what POST /rank gives in mode min."""
    rows = []
    for index in range(40):
        texts = responses(index, 6)
        ranked = local.rank(RankRequest(prompt=f"q{index}", candidates=texts, mode="min"))
        gold = [result.score for result in ranked.results]
        rows.append(
            {"prompt": f"q{index}", "candidates": [{"text": t, "gold": g} for t, g in zip(texts, gold, strict=True)]}
        )
    return write(tmp_path_factory.mktemp("data") / "planted.jsonl", rows)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"prompt": f"q{i}", "chosen": a, "rejected": b}
        for i, (a, b) in enumerate(responses(seed, 2) for seed in range(40))
    ]
    return write(tmp_path_factory.mktemp("data") / "pairs.jsonl", rows)


def run(*args: Any) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_mode_and_temperature_of_the_data_become_a_new_version(
    bundle: Bundle, local: LocalScorer, planted: Path, pairs: Path, tmp_path: Path
) -> None:
    result = run(
        bundle.path, "--data", planted, "--pairs", pairs, "--out", tmp_path / "new", "--json", "--device", "cpu"
    )
    assert result.exit_code == 0, result.exception
    summary = json.loads(result.stdout.splitlines()[-1])
    written = read_bundle(tmp_path / "new")
    manifest = written.manifest
    assert summary["version"] == written.version != bundle.version
    assert manifest.parent_version == bundle.version
    assert (manifest.default_mode, manifest.default_beta) == ("min", None)

    margins = []
    for line in pairs.read_text().splitlines():
        row = json.loads(line)
        both = local.score(
            ScoreRequest(
                inputs=[ScoreItem(prompt=row["prompt"], response=row[side]) for side in ("chosen", "rejected")]
            )
        )
        margins.append(np.subtract(both.results[0].members, both.results[1].members))  # type: ignore[arg-type]
    # The same fit on scores of the other path, batched otherwise, in fp32.
    assert manifest.pair_temperature == pytest.approx(fit_pair_temperature(np.array(margins).T), rel=1e-3)

    figures = manifest.metrics["calibration"]
    assert {key: summary[key] for key in figures} == figures
    assert (figures["mode"], figures["num_pools"], figures["num_pairs"], figures["n"]) == ("min", 40, 40, "full")
    assert figures["advantage_low"] > 0
    assert figures["gold_cross_validated"] == pytest.approx(figures["gold_of_mean"] + figures["advantage"])
    assert len(figures["data_sha256"]) == len(figures["pairs_sha256"]) == 64
    assert len(summary["gold_by_scoring"]) == 24
    assert "calibration" in (tmp_path / "new" / "README.md").read_text()


def test_scores_stay_and_weights_are_shared(bundle: Bundle, local: LocalScorer, planted: Path, tmp_path: Path) -> None:
    result = run(bundle.path, "--data", planted, "--out", tmp_path / "new", "--device", "cpu")
    assert result.exit_code == 0, result.exception
    request = ScoreRequest(inputs=[ScoreItem(prompt="Hi", response="Hello")], mode="mean")
    new = LocalScorer.open(str(tmp_path / "new"), device="cpu")
    assert new.score(request).results[0].members == local.score(request).results[0].members
    assert new.context.manifest.members == bundle.manifest.members
    assert new.context.manifest.pair_temperature == bundle.manifest.pair_temperature  # no pairs were given
    weights = [name for name in bundle.manifest.files if name.endswith(".safetensors")]
    for name in weights:
        assert (tmp_path / "new" / name).samefile(bundle.path / name)
    assert not (tmp_path / "new" / "golden.json").samefile(bundle.path / "golden.json")
    read_bundle(bundle.path)  # the parent is whole


def test_files_less_readable_than_a_bundles_are_copied(bundle: Bundle, tmp_path: Path) -> None:
    name = next(name for name in bundle.manifest.files if name.endswith("adapter_model.safetensors"))
    mode = (bundle.path / name).stat().st_mode
    (bundle.path / name).chmod(0o600)
    try:
        carry_over(bundle, tmp_path)
        assert not (tmp_path / name).samefile(bundle.path / name)
        assert (tmp_path / name).read_bytes() == (bundle.path / name).read_bytes()
        assert (bundle.path / name).stat().st_mode & 0o777 == 0o600
    finally:
        (bundle.path / name).chmod(mode)


def test_noise_leaves_the_mean(bundle: Bundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        {"prompt": f"q{i}", "candidates": [{"text": text, "gold": float(rng.normal())} for text in responses(i, 6)]}
        for i in range(40)
    ]
    result = run(bundle.path, "--data", write(tmp_path / "noise.jsonl", rows), "--out", tmp_path / "new", "--json")
    figures = json.loads(result.stdout.splitlines()[-1])
    assert (figures["mode"], figures["beta"]) == ("mean", None)
    assert read_bundle(tmp_path / "new").manifest.default_mode == "mean"


def test_pairs_are_pools_of_two(bundle: Bundle, pairs: Path, tmp_path: Path) -> None:
    result = run(bundle.path, "--data", pairs, "--out", tmp_path / "new", "--json")
    table = json.loads(result.stdout.splitlines()[-1])["gold_by_scoring"]
    # Centred, both sides of a pair have the same std: lcb and uwo order as the mean does, at any beta.
    assert {table[name] for name in table if name.startswith(("lcb", "uwo"))} == {table["mean/group"]}
    assert 0 <= table["mean/group"] <= 1


def test_picking_from_n(bundle: Bundle, planted: Path, tmp_path: Path) -> None:
    result = run(bundle.path, "--data", planted, "--out", tmp_path / "new", "--n", "3", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["n"] == 3


def test_one_member_has_a_temperature_and_no_choice(planted: Path, pairs: Path, tmp_path: Path) -> None:
    single = make_bert_bundle(tmp_path / "single", num_members=1)
    refused = run(single.path, "--data", planted, "--out", tmp_path / "new")
    assert isinstance(refused.exception, InvalidRequest)
    assert "one member" in refused.exception.message
    result = run(single.path, "--data", planted, "--pairs", pairs, "--out", tmp_path / "new")
    assert result.exit_code == 0, result.exception
    manifest = read_bundle(tmp_path / "new").manifest
    assert manifest.default_mode == "mean"
    assert manifest.pair_temperature != single.manifest.pair_temperature
    assert "mode" not in manifest.metrics["calibration"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to calibrate on"),
        (["--data", "PLANTED", "--n", "7"], "line 1 has 6 candidates, fewer than 7"),
        (["--pairs", "PAIRS", "--n", "2"], "n: goes with --data"),
        (["--pairs", "PLANTED"], "line 1: chosen"),
    ],
)
def test_bad_requests_leave_nothing(
    args: list[str], message: str, bundle: Bundle, planted: Path, pairs: Path, tmp_path: Path
) -> None:
    given = [{"PLANTED": planted, "PAIRS": pairs}.get(arg, arg) for arg in args]
    result = run(bundle.path, *given, "--out", tmp_path / "new")
    assert isinstance(result.exception, QuorumError)
    assert message in result.exception.message
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_and_a_missing_folder_are_refused_before_scoring(
    bundle: Bundle, pairs: Path, tmp_path: Path
) -> None:
    for target, message in ((tmp_path, "exists already"), (tmp_path / "a" / "b", "no such folder")):
        result = run(bundle.path, "--pairs", pairs, "--out", target)
        assert isinstance(result.exception, InvalidRequest)
        assert message in result.exception.message
