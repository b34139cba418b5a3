"""`quorum eval` on a tiny bundle: scores are the server's, output is whole, nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from quorum_client.errors import InvalidRequest, QuorumError
from quorum_client.types import CompareRequest, RankRequest
from quorum_model.bundle.read import Bundle, read_bundle
from quorum_model.local import LocalScorer
from quorum_trainer.data import DataError
from quorum_trainer.evaluation.command import evaluate
from quorum_trainer.evaluation.folder import write_folder
from quorum_trainer.evaluation.report import DataFile, read_files, warnings_of
from quorum_trainer.evaluation.scores import OpenBundle, ScoreNotFinite
from tests.server.tiny_bundle import make_bert_bundle

app = typer.Typer()
app.command()(evaluate)

WORDS = ["Paris", "Rome is far", "no", "yes it is", "maybe", "Berlin and Bonn", "42", "never"]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bert_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """24 pairs of 12 prompts, 6 RM-Bench rows of two domains, 4 pools and 2 best-of-4 rows."""
    folder = tmp_path_factory.mktemp("files")
    pairs = [
        {"prompt": f"q{i % 12}", "chosen": WORDS[i % 8], "rejected": WORDS[(i + 3) % 8], "subset": "ab"[i % 2]}
        for i in range(24)
    ]
    styles = [
        {"prompt": f"s{i}", "chosen": WORDS[:3], "rejected": WORDS[3:6], "meta": {"domain": ["chat", "code"][i % 2]}}
        for i in range(6)
    ]
    pools = [
        {"prompt": f"b{i}", "candidates": [{"text": text, "gold": (i + j) % 3 / 2} for j, text in enumerate(WORDS)]}
        for i in range(4)
    ]
    choices = [{"prompt": f"c{i}", "chosen": [WORDS[i]], "rejected": WORDS[4:7]} for i in range(2)]
    return {
        "pairs": write(folder / "pairs.jsonl", pairs),
        "styles": write(folder / "styles.jsonl", styles),
        "pools": write(folder / "pools.jsonl", pools),
        "choices": write(folder / "choices.jsonl", choices),
    }


def run(*args: Any) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=True)


@pytest.fixture(scope="module")
def whole(
    bundle: Bundle, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("out") / "report"
    options = ["--pairs", files["pairs"], "--rm-bench", files["styles"], "--bon", files["pools"]]
    result = run(bundle.path, *options, "--bon", files["choices"], "--report", folder, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.exception
    return result, json.loads(result.stdout.strip().splitlines()[-1]), folder


def test_json_has_every_part(whole: tuple[Result, dict[str, Any], Path], bundle: Bundle) -> None:
    _, report, folder = whole
    assert set(report) == {
        "bundle", "settings", "files", "warnings", "pairs", "rm_bench", "best_of_n", "usage",
    }  # fmt: skip
    assert (report["bundle"]["name"], report["bundle"]["version"]) == ("tiny", bundle.version)
    assert [(file["label"], file["kind"], file["num_rows"]) for file in report["files"]] == [
        ("pairs", "pairs", 24), ("styles", "rm_bench", 6), ("pools", "best_of_n", 4), ("choices", "best_of_n", 2),
    ]  # fmt: skip
    assert list(report["pairs"]) == ["all", "pairs: subset=a", "pairs: subset=b"]
    assert list(report["best_of_n"]) == ["all", "pools", "choices"]
    assert set(report["rm_bench"]["num_prompts"]) == {"chat", "code"}
    assert json.loads((folder / "report.json").read_text()) == report


def test_figures_are_those_of_the_servers_answers(
    whole: tuple[Result, dict[str, Any], Path], bundle: Bundle, files: dict[str, Path]
) -> None:
    report = whole[1]
    local = LocalScorer.open(str(bundle.path), device="cpu")
    margins, picks = [], []
    for line in files["pairs"].read_text().splitlines():
        pair = json.loads(line)
        answer = local.compare(CompareRequest(prompt=pair["prompt"], a=pair["chosen"], b=pair["rejected"]))
        margins.append(answer.members)  # type: ignore[union-attr]
    mean = np.mean(margins, axis=1)
    accuracy = report["pairs"]["all"]["accuracy"]
    assert accuracy["scorings"]["mean"]["value"] == pytest.approx(np.mean((np.sign(mean) + 1) / 2))
    # Margins in calibrated units: what the server's probability is made of. fp32 and other batches.
    brier = np.mean((1 - 1 / (1 + np.exp(-bundle.manifest.pair_temperature * mean))) ** 2)
    assert report["pairs"]["all"]["calibration"]["bundle"]["brier"] == pytest.approx(brier, rel=1e-4)
    by_member = [accuracy["members"][name]["value"] for name in ("m00", "m01", "m02")]
    assert by_member == pytest.approx(np.mean((np.sign(margins) + 1) / 2, axis=0))
    for line in files["pools"].read_text().splitlines():
        pool = json.loads(line)
        ranked = local.rank(
            RankRequest(prompt=pool["prompt"], candidates=[one["text"] for one in pool["candidates"]], mode="lcb")
        )
        assert ranked.best is not None
        picks.append(pool["candidates"][ranked.best]["gold"])
    assert report["best_of_n"]["pools"]["scorings"]["lcb@1/group"]["full"]["value"] == pytest.approx(np.mean(picks))


def test_baselines_stand_in_every_table_of_accuracy_or_gold(whole: tuple[Result, dict[str, Any], Path]) -> None:
    result, _, folder = whole
    markdown = (folder / "report.md").read_text()
    tables = markdown.split("## ")[1:]
    for table in tables:
        title = table.splitlines()[0]
        if title.startswith(("pair accuracy", "RM-Bench, mean")):
            assert all(name in table for name in ("longer", "shorter", "random")), title
        if title.startswith(("gold of the best", "length in characters")):
            assert all(name in table for name in ("longest", "shortest", "random", "oracle")), title
        if title.startswith(("calibration", "uncertainty")):
            assert "random" in table, title
    assert {title.split(",")[0].split(":")[0].split(" (")[0] for title in (t.splitlines()[0] for t in tables)} >= {
        "files", "pair accuracy", "calibration", "uncertainty against being wrong", "pair accuracy by group",
        "accuracy by margin std", "share of pairs ordered alike", "RM-Bench", "gold of the best of n",
        "length in characters of the best of n",
    }  # fmt: skip
    assert "random" in result.stderr


def test_plots_are_pictures_with_something_in_them(whole: tuple[Result, dict[str, Any], Path]) -> None:
    folder = whole[2]
    names = [
        "agreement.png",
        "best_of_n.png",
        "best_of_n_choices.png",
        "best_of_n_pools.png",
        "reliability.png",
        "selective_accuracy.png",
        "std_and_error.png",
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "report.json", "report.md"])
    markdown = (folder / "report.md").read_text()
    for name in names:
        assert len(np.unique(matplotlib.image.imread(folder / name)[..., 0])) > 20  # levels of red: no empty page
        assert f"({name})" in markdown


def test_the_same_run_gives_the_same_figures(
    whole: tuple[Result, dict[str, Any], Path], bundle: Bundle, files: dict[str, Path]
) -> None:
    again = run(bundle.path, "--pairs", files["pairs"], "--json", "--device", "cpu")
    assert json.loads(again.stdout.splitlines()[-1])["pairs"] == whole[1]["pairs"]


def test_one_policys_samples(bundle: Bundle, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "report"
    result = run(bundle.path, "--bon", files["pools"], "--one-policy", "--report", out, "--json")
    assert result.exit_code == 0, result.exception
    figures = json.loads(result.stdout.splitlines()[-1])["best_of_n"]["all"]
    assert figures["policy"]["n"] == list(range(1, 9))
    assert figures["policy"]["fits"]["scorings"]["lcb@1/group"]["num_sizes"] == 6
    markdown = (out / "report.md").read_text()
    assert "KL (nats)" in markdown
    assert "alpha ± error" in markdown
    assert "mean (default)" in markdown
    assert len(np.unique(matplotlib.image.imread(out / "overoptimization.png")[..., 0])) > 20


def test_asked_modes_alone(bundle: Bundle, files: dict[str, Path]) -> None:
    result = run(
        bundle.path, "--pairs", files["pairs"], "--mode", "lcb", "--beta", "0.5", "--beta", "2", "--json"
    )  # fmt: skip
    report = json.loads(result.stdout.splitlines()[-1])
    assert list(report["settings"]["scorings"]) == ["mean", "lcb@0.5", "lcb@2"]


def test_a_folder_that_holds_something_is_left_alone(bundle: Bundle, files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    result = run(bundle.path, "--pairs", files["pairs"], "--report", tmp_path)
    assert isinstance(result.exception, InvalidRequest)
    assert "not empty; give another" in result.exception.message  # before scoring, not at the rename
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_report_that_fails_leaves_nothing(
    whole: tuple[Result, dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr("quorum_trainer.evaluation.folder.to_markdown", fail)
    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "report", whole[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing to evaluate on"),
        (["--pairs", "PAIRS", "--mode", "best"], "mode: unknown"),
        (["--pairs", "PAIRS", "--one-policy"], "give --bon"),
        (["--pairs", "PAIRS", "--report", "gone/deeper"], "no such folder"),
        (["--rm-bench", "PAIRS"], "line 1: chosen"),
        (["--pairs", "PAIRS", "--pairs", "PAIRS"], "given twice"),
    ],
)
def test_bad_requests_end_before_scoring(args: list[str], message: str, bundle: Bundle, files: dict[str, Path]) -> None:
    result = run(bundle.path, *[files["pairs"] if arg == "PAIRS" else arg for arg in args])
    assert isinstance(result.exception, QuorumError)
    assert message in result.exception.message


def test_texts_that_cannot_be_encoded_name_their_line(bundle: Bundle, tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": ["a"], "rejected": ["b", "half \ud800"]}
    path = write(tmp_path / "bad.jsonl", [{"prompt": "p", "chosen": "a", "rejected": ["b"]}, row])
    result = run(bundle.path, "--bon", path)
    assert isinstance(result.exception, DataError)
    assert "bad, line 2" in result.exception.message


def test_a_score_that_is_not_finite_stops_the_evaluation(
    bundle: Bundle, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = OpenBundle.open(str(bundle.path), device="cpu", dtype="float32")
    rows = read_files([files["pairs"]], [], [])[0].rows
    original = opened.scorer.score

    def broken(sequences: Any, on_pass: Any) -> Any:
        scores = original(sequences, on_pass)
        scores.raw[1, 0] = np.nan
        return scores

    monkeypatch.setattr(opened.scorer, "score", broken)
    with pytest.raises(ScoreNotFinite, match=r"pairs, line \d+"):
        opened.score(rows, lambda done, total: None)


def test_each_distinct_text_is_scored_once_and_long_ones_are_counted(bundle: Bundle, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b" * 200}] * 5
    opened = OpenBundle.open(str(bundle.path), device="cpu", dtype="float32")
    seen: list[tuple[int, int]] = []
    scored = opened.score(read_files([write(tmp_path / "a.jsonl", rows)], [], [])[0].rows, lambda *at: seen.append(at))
    assert seen[-1] == (2, 2)
    assert [one.num_truncated for one in scored] == [1] * 5


def test_training_data_is_named_in_a_warning(bundle: Bundle, files: dict[str, Path]) -> None:
    from quorum_model.bundle.manifest import TrainingData

    file = read_files([files["pairs"]], [], [])[0]
    known = TrainingData(name="toy", sha256=file.sha256, num_pairs=24)
    manifest = read_bundle(bundle.path).manifest.model_copy(update={"training_data": [known]})
    other = DataFile("other", file.path, "pairs", "0" * 64, file.rows)
    assert len(warnings_of(manifest, [file, other])) == 1
    assert "toy" in warnings_of(manifest, [file])[0]
