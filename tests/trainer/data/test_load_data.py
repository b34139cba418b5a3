"""From a config's sources to encoded pairs: weights and margins arrive, leaks do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from pydantic import ValidationError

from quorum_model.prompts import PLAIN_TEMPLATE, PromptEncoder
from quorum_trainer.config import ConfigError, DataSource, TrainConfig
from quorum_trainer.data import DataError, PreferencePair, encode_pairs, hash_file
from quorum_trainer.prepare import load_data
from tests.reference.tiny_tokenizers import bert_like


@pytest.fixture
def encoder() -> PromptEncoder:
    return PromptEncoder(bert_like(), template=PLAIN_TEMPLATE, bos_ids=[0], eos_ids=[2], max_length=40)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainConfig]:
    """A config of the given sources; `file` and `folder` hold rows to be written first."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(*sources: dict[str, Any]) -> TrainConfig:
        values = []
        for source in sources:
            name, rows = source["name"], source.pop("rows")
            path = tmp_path / name / "train.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            place = {"hub": str(path.parent)} if source.pop("hub", False) else {"path": str(path)}
            values.append(source | place)
        return TrainConfig.model_validate(
            {"name": "toy", "kind": "lora", "backbone": "none", "phase2": {"lr": 1e-3}, "data": values}
        )

    return make


def rows(*prompts: str, **changes: Any) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "chosen": f"yes {prompt}", "rejected": "no", **changes} for prompt in prompts]


FRUIT = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def test_pairs_carry_source_phase_weight_margin_and_tie(
    settings: Callable[..., TrainConfig], encoder: PromptEncoder
) -> None:
    config = settings(
        {"name": "file", "rows": rows("one", margin=2) + rows("two", tie=True), "held_out": 0, "weight": 0.5},
        {"name": "hub", "hub": True, "rows": rows("three"), "held_out": 0, "weight": 3, "phase": 2},
        {"name": "dev", "rows": rows("four", "five"), "held_out": 0.9, "weight": 2},
    )
    data = load_data(config, encoder)
    carried = [(p.source, p.phase, p.weight, p.margin, p.tie) for p in data.train[:3]]
    assert carried == [("file", None, 0.5, 2.0, False), ("file", None, 0.5, 0.0, True), ("hub", 2, 3.0, 0.0, False)]
    assert data.train[0].chosen == encoder.encode_pair("one", "yes one").ids
    assert data.train[0].chosen_chars == len("yes one")
    assert {p.weight for p in data.held_out} == {1.0}  # each counts once in every figure
    assert [described.num_pairs for described in data.described[:2]] == [2, 1]
    assert config.data[0].path is not None
    assert data.described[0].sha256 == hash_file(Path(config.data[0].path))


def test_leaks_between_sources_are_dropped_and_returned(
    settings: Callable[..., TrainConfig], encoder: PromptEncoder
) -> None:
    one = {"name": "one-red", "rows": rows(*FRUIT), "held_out": 0}
    two = {"name": "two", "hub": True, "rows": rows(*(prompt.upper() for prompt in FRUIT)), "held_out": 0.4}
    data = load_data(settings(one, two), encoder)
    # The second source holds four prompts out, and the first trains on all ten: in another spelling.
    assert data.audit.leaks.by_source == {"one-red": 4}
    assert [len(data.train), len(data.held_out)] == [6 + 6, 4]
    assert [described.num_pairs for described in data.described] == [6, 6]


def test_at_most_so_many_pairs_are_taken(settings: Callable[..., TrainConfig], encoder: PromptEncoder) -> None:
    data = load_data(settings({"name": "a", "rows": rows(*FRUIT), "max_pairs": 3, "held_out": 0.4}), encoder)
    assert [len(data.train), len(data.held_out)] == [3, 4]


@pytest.mark.parametrize(("held_out", "message"), [(0, "no pairs are held out"), (0.9, "no pairs are left to train")])
def test_both_sides_are_needed(
    held_out: float, message: str, settings: Callable[..., TrainConfig], encoder: PromptEncoder
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_data(settings({"name": "a", "rows": rows("one"), "held_out": held_out}), encoder)


def test_a_pair_that_the_template_refuses_is_named_by_line() -> None:
    strict = PromptEncoder(
        bert_like(), template="{{ raise_exception('no') }}", bos_ids=[], eos_ids=[], max_length=40
    )  # fmt: skip
    pairs = [PreferencePair(prompt="SECRET", chosen="a", rejected="b", line=7)]
    with pytest.raises(DataError, match="toy, line 7: the chat template refuses") as caught:
        encode_pairs(strict, pairs, "toy")
    assert "SECRET" not in caught.value.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "give exactly one of path and hub"),
        ({"path": "a", "hub": "b"}, "give exactly one of path and hub"),
        ({"path": "a", "split": "train"}, "a file has no split"),
        ({"path": "a", "subset": "b"}, "a file has no subset"),
        ({"path": "a", "revision": "b"}, "a file has no revision"),
        ({"path": ""}, "path"),
        ({"path": "a", "weight": 0}, "weight"),
        ({"path": "a", "weight": float("inf")}, "weight"),
        ({"path": "a", "weight": float("nan")}, "weight"),
    ],
)
def test_sources_that_cannot_be_meant(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSource.model_validate({"name": "a", **change})


@pytest.mark.parametrize("place", [{"path": "a"}, {"hub": "a"}, {"hub": "a", "subset": "b", "split": "test"}])
def test_a_source_that_is_saved_reads_as_it_was(place: dict[str, str]) -> None:
    source = DataSource.model_validate({"name": "a", **place})
    assert DataSource.model_validate(source.model_dump(mode="json")) == source
