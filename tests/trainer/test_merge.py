"""`quorum merge`, from bundle to bundle: what it scores, what it says of itself, and what it refuses."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from peft import PeftModel
from scipy.optimize import minimize_scalar
from typer.testing import CliRunner

from quorum_client.errors import InvalidRequest
from quorum_client.types import CompareRequest, ScoreItem, ScoreRequest
from quorum_model.bundle.read import Bundle, read_bundle
from quorum_model.errors import BundleError, CalibrationFailed, SelfTestFailed, Unsupported
from quorum_model.loading import load_member_scorer
from quorum_model.local import LocalScorer
from quorum_trainer.data import DataError
from quorum_trainer.merge import load_pairs, merge, merge_bundle
from tests.model.bundle.singles_bundle import make_singles_bundle
from tests.model.bundle.small_bundle import forge
from tests.model.bundle.test_snippet import assert_snippet_gives_served_score, make_real_bundle
from tests.model.test_member_scorer import rewrite
from tests.reference.tiny_models import ARCHITECTURES, make_model
from tests.server.tiny_bundle import make_bert_bundle

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
app = typer.Typer()
app.command()(merge)

PAIRS = [
    {"prompt": f"How {word}?", "chosen": f"Yes, {word}.", "rejected": f"No {word * (index % 3)}"}
    for index, word in enumerate("one two three four five six seven eight nine ten eleven twelve".split())
]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bert_bundle(tmp_path_factory.mktemp("parent") / "tiny")


@pytest.fixture(scope="module")
def merged(parent: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return merge_bundle(parent, tmp_path_factory.mktemp("merged") / "tiny")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return path


def score(bundle: Bundle, responses: list[str], **options: Any) -> list[float]:
    items = [ScoreItem(prompt=pair["prompt"], response=pair[side]) for side in responses for pair in PAIRS]
    results = LocalScorer.open(str(bundle.path), device="cpu").score(ScoreRequest(inputs=items, **options)).results
    return [float(result.score) for result in results if result.score is not None]


def test_the_merged_bundle_scores_as_plain_peft_says(parent: Bundle, merged: Bundle) -> None:
    scorer = LocalScorer.open(str(merged.path), device="cpu")  # every hash, and the golden self-test
    base = make_model(BY_NAME["bert"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT remarks on the base's name
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(merged.path / "members" / "m00")).eval()
    sequences = [[1, 20, 30, 40, 2], [1, 11, 2]]
    with torch.no_grad():
        expected = [float(loaded(input_ids=torch.tensor([ids])).logits) for ids in sequences]
    request = ScoreRequest(inputs=[ScoreItem(token_ids=ids) for ids in sequences])
    results = scorer.score(request).results
    assert [result.score for result in results] == pytest.approx(expected, abs=1e-4)  # fp32, scores of order 1
    assert all(result.std is None and result.members == [result.score] for result in results)
    assert abs(expected[0] - expected[1]) > 0.01
    assert merged.manifest.members[0].calibration.mean == 0.0  # the head's bias holds it
    # sum of the ranks 2, 3 and 4
    config = json.loads((merged.path / "members" / "m00" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (9, 9)


def test_without_pairs_it_says_nothing_that_was_not_measured(parent: Bundle, tmp_path: Path) -> None:
    said = {"metrics": {"held_out": {"all": {"num_pairs": 3}}}, "pair_temperature": 2.5, "default_mode": "lcb"}
    parent = rewrite(parent, tmp_path / "parent", licence="MIT", default_beta=1.5, **said)
    manifest = merge_bundle(parent, tmp_path / "merged").manifest
    assert (manifest.name, manifest.kind, manifest.parent_version) == ("tiny-merged", "merged", parent.version)
    assert (manifest.metrics, manifest.pair_temperature, manifest.reference_stats) == ({}, 1.0, None)
    assert (manifest.default_mode, manifest.default_beta) == ("mean", None)
    kept = {"pooling", "max_length", "bos_ids", "eos_ids", "prompt_format", "truncation", "licence", "training_data"}
    assert manifest.model_dump(include=kept) == parent.manifest.model_dump(include=kept)
    assert manifest.backbone == parent.manifest.backbone
    assert "Not measured" in (tmp_path / "merged" / "README.md").read_text()


@pytest.mark.parametrize(("name", "pooling"), [("bert", "mean"), ("llama", "last")])
def test_a_shared_adapter_stays_and_counts(name: str, pooling: str, tmp_path: Path) -> None:
    parent = make_real_bundle(tmp_path / "with", BY_NAME[name], "lora", pooling, shared=True)
    bundle = merge_bundle(parent, tmp_path / "merged")
    assert bundle.manifest.shared_adapter == "shared_adapter"
    for path in (parent.path / "shared_adapter").iterdir():
        assert (bundle.path / "shared_adapter" / path.name).read_bytes() == path.read_bytes()
    load_member_scorer(bundle)
    forge(bundle.path, lambda manifest: manifest.update(shared_adapter=None))
    with pytest.raises(SelfTestFailed):
        load_member_scorer(read_bundle(bundle.path))


def test_a_head_without_bias_starts_calibrated_by_its_member_entry(tmp_path: Path) -> None:
    parent = make_real_bundle(tmp_path / "b", BY_NAME["llama"], "lora", "last", shared=False)
    calibration = merge_bundle(parent, tmp_path / "merged").manifest.members[0].calibration
    # Members have mean 0.3 k and scale 1 + k.
    assert (calibration.mean, calibration.scale) == (pytest.approx((0 / 1 + 0.3 / 2) / 2), 1.0)


def test_pairs_calibrate_it(parent: Bundle, merged: Bundle, pairs: Path, tmp_path: Path) -> None:
    bundle = merge_bundle(parent, tmp_path / "calibrated", load_pairs(parent, pairs))
    raw = np.array(score(merged, ["chosen", "rejected"])).reshape(2, -1)
    scale = np.sqrt(((raw[0] - raw[1]) ** 2).mean() / 2)
    calibration = bundle.manifest.members[0].calibration
    assert calibration.mean == pytest.approx(raw.mean(), abs=1e-5)  # fp32 scores of order 1
    assert calibration.scale == pytest.approx(scale, abs=1e-5)
    margins = (raw[0] - raw[1]) / scale
    tau = minimize_scalar(lambda t: np.logaddexp(0, -t * margins).mean(), bounds=(0.01, 100), method="bounded").x
    assert bundle.manifest.pair_temperature == pytest.approx(tau, rel=1e-3)  # the minimiser's own tolerance
    assert bundle.manifest.metrics["held_out"]["all"]["ensemble_mean"] == pytest.approx((margins > 0).mean())
    assert bundle.manifest.reference_stats is not None
    assert bundle.manifest.reference_stats.std_quantiles == {}
    assert np.array(score(bundle, ["chosen", "rejected"])).mean() == pytest.approx(0.0, abs=1e-5)
    assert "both are measured on held-out pairs" in (bundle.path / "README.md").read_text()


@pytest.mark.parametrize("options", [{"mode": "lcb"}, {"mode": "uwo", "beta": 0.5}])
def test_what_needs_a_spread_is_refused_never_a_silent_mean(merged: Bundle, options: dict[str, Any]) -> None:
    scorer = LocalScorer.open(str(merged.path), device="cpu")
    item = ScoreItem(prompt="Hi", response="Hello")
    with pytest.raises(InvalidRequest, match="at least 2 members") as failure:
        scorer.score(ScoreRequest(inputs=[item], **options))
    assert failure.value.status == 422
    compared = scorer.compare(CompareRequest(prompt="Hi", a="Hello", b="Go"))
    assert compared.model_dump()["margin"]["std"] is None


@pytest.mark.parametrize("kind", ["linear", "singles", "merged"])
def test_other_kinds_are_refused_by_name(kind: str, merged: Bundle, tmp_path: Path) -> None:
    if kind == "singles":
        bundle = make_singles_bundle(tmp_path / "b", BY_NAME["bert"], "first")
    elif kind == "linear":
        bundle = make_real_bundle(tmp_path / "b", BY_NAME["bert"], "linear", "first", shared=False)
    else:
        bundle = merged
    with pytest.raises(Unsupported, match=f"kind '{kind}' cannot be merged"):
        merge_bundle(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dora_is_refused(parent: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(parent.path, tmp_path / "dora")
    path = folder / "members" / "m01" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    forge(folder)
    with pytest.raises(Unsupported, match="m01: use_dora"):
        merge_bundle(read_bundle(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_long_name_stays_a_name(parent: Bundle, tmp_path: Path) -> None:
    bundle = merge_bundle(rewrite(parent, tmp_path / "long", name="n" * 64), tmp_path / "out")
    assert bundle.manifest.name == "n" * 57 + "-merged"


@pytest.mark.parametrize(
    ("name", "pooling", "shared"), [("bert", "first", True), ("modernbert", "mean", False), ("llama", "last", True)]
)
def test_the_snippet_of_a_merged_ensemble_gives_the_served_score(
    name: str, pooling: str, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = make_real_bundle(tmp_path / "b", BY_NAME[name], "lora", pooling, shared=shared)
    assert_snippet_gives_served_score(merge_bundle(parent, tmp_path / "merged"), monkeypatch)


# the command


def test_the_command_says_that_it_is_not_calibrated(parent: Bundle, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(parent.path), "--out", str(tmp_path / "new" / "out"), "--json"])
    assert result.exit_code == 0, result.output
    assert "not calibrated" in " ".join(result.stderr.split())
    summary = json.loads(result.stdout.strip().splitlines()[-1])
    bundle = read_bundle(tmp_path / "new" / "out")
    assert (summary["version"], summary["parent_version"]) == (bundle.version, parent.version)
    assert (summary["calibrated"], summary["members_merged"]) == (False, 3)
    assert 0 < summary["bytes"]["merged"] <= summary["bytes"]["parent"]


def test_the_command_calibrates_where_pairs_are_given(parent: Bundle, pairs: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, [str(parent.path), "--out", str(tmp_path / "out"), "--pairs", str(pairs), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert "not calibrated" not in result.stderr
    summary = json.loads(result.stdout.strip().splitlines()[-1])
    assert summary["calibrated"] is True
    assert summary["held_out"]["all"]["num_pairs"] == len(PAIRS)


def test_an_existing_target_is_left_alone(parent: Bundle, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    result = CliRunner().invoke(app, [str(parent.path), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, BundleError)
    assert "exists already" in result.exception.message
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "mine").read_text() == "keep"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"prompt": "a", "chosen": "b"}\n', DataError, "line 1: rejected"),
        ("", DataError, "holds no pairs"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}\n', CalibrationFailed, "cannot be calibrated"),
    ],
)
def test_pairs_that_say_nothing_are_refused_and_nothing_is_written(
    parent: Bundle, tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    result = CliRunner().invoke(app, [str(parent.path), "--out", str(tmp_path / "out"), "--pairs", str(path)])
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]
