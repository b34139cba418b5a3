"""`quorum bench parity` on a tiny bundle: fp32 with itself passes, a dtype that loses too much does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quorum_client.cli import app
from quorum_model.benchmark import parity as parity_bench
from quorum_model.bundle.read import Bundle
from quorum_model.errors import SelfTestFailed
from tests.server.tiny_bundle import make_bert_bundle

ROWS = [
    {"prompt": "Why?", "chosen": "Because of the rain.", "rejected": "x"},  # the one whose margin is clear: 0.16
    *({"prompt": f"What is {n}+{n}?", "chosen": f"{2 * n}", "rejected": f"I say {n}"} for n in range(1, 9)),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bert_bundle(tmp_path_factory.mktemp("bundles") / "bert")


def run(bundle: Bundle, folder: Path, *options: str, rows: list[Any] = ROWS) -> Any:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--data", str(path), "--device", "cpu", "--json", *options)
    return CliRunner().invoke(app, ["bench", "parity", str(bundle.path), *options])


def said(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_fp32_passes_against_itself(bundle: Bundle, tmp_path: Path) -> None:
    found = said(run(bundle, tmp_path, "--dtype", "float32"))
    assert found["passes"] is True
    assert set(found["members"]) == {"m00", "m01", "m02"}
    assert found["mean"] == found["std"] == {"p50": 0, "p99": 0, "max": 0}
    assert found["order"] == {"pairs": 9, "clear_pairs": 1, "kept": 1}
    assert found["order"]["kept"] == 1
    assert found["version"] == bundle.version


def test_bf16_differs_by_rounding_in_calibrated_units(bundle: Bundle, tmp_path: Path) -> None:
    found = said(run(bundle, tmp_path, "--dtype", "bfloat16"))
    assert found["dtype"] == "bfloat16"
    for own in [*found["members"].values(), found["mean"], found["std"]]:
        assert 0 < own["p50"] <= own["p99"] <= own["max"] < 0.5


def test_a_members_difference_is_in_units_of_its_scale(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = parity_bench.load_member_scorer

    def shifted(*args: Any, dtype: str, **options: Any) -> Any:
        scorer = right(*args, dtype="float32", **options)
        score = scorer.score

        class Shifted:
            def score(self, sequences: Any) -> Any:
                found = score(sequences)
                found.raw[:] += 0.3 if dtype == "bfloat16" else 0.0
                return found

        return Shifted()

    monkeypatch.setattr(parity_bench, "load_member_scorer", shifted)
    found = said(run(bundle, tmp_path))
    # Scales 1, 2 and 3: see make_bert_bundle.
    assert [own["max"] for own in found["members"].values()] == pytest.approx([0.3, 0.15, 0.1], abs=1e-5)
    assert found["mean"]["max"] == pytest.approx(0.55 / 3, abs=1e-5)
    assert found["order"]["kept"] == 1
    assert found["passes"] is False


def test_a_dtype_that_fails_the_self_test_does_not_pass(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = parity_bench.load_member_scorer

    def failing(*args: Any, dtype: str, **options: Any) -> Any:
        if dtype == "bfloat16":
            raise SelfTestFailed("off by 3 scales")
        return right(*args, dtype=dtype, **options)

    monkeypatch.setattr(parity_bench, "load_member_scorer", failing)
    found = said(run(bundle, tmp_path))
    assert (found["passes"], found["members"]) == (False, None)
    assert "off by 3 scales" in found["reasons"]["members"]


@pytest.mark.parametrize(
    ("rows", "options", "text"),
    [
        ([{"prompt": "Hi", "response": "Hello"}], (), "line 1: parity needs pairs"),
        ([{"prompt": "Hi", "chosen": "Hello", "rejected": " "}], (), "line 1: the response is empty"),
        (ROWS, ("--dtype", "int3"), "unknown dtype"),
    ],
)
def test_bad_input(bundle: Bundle, rows: list[Any], options: tuple[str, ...], text: str, tmp_path: Path) -> None:
    result = run(bundle, tmp_path, *options, rows=rows)
    assert result.exit_code == 1
    assert text in result.output
