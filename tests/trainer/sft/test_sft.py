"""`quorum sft` with a model of two layers: what it writes, what it learns, and that a resumed run is the same run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from quorum_client.cli import app
from quorum_client.errors import QuorumError
from quorum_trainer.config import ConfigError
from quorum_trainer.data.formats import RowRejected
from quorum_trainer.data.pairs import DataError
from quorum_trainer.runs.run_folder import RunFolder
from quorum_trainer.sft.config import SftConfig, read_sft_config
from quorum_trainer.sft.dialogues import dialogue_of_row, load_dialogues
from quorum_trainer.sft.policy import train_tokenizer
from quorum_trainer.sft.run import SftResult, run
from quorum_trainer.training.keeper import TrainingInterrupted

CPU = torch.device("cpu")
SHAPE = {"layers": 2, "hidden": 32, "ffn": 64, "heads": 2, "key_heads": 1, "vocab_size": 400, "max_positions": 128}


def write_dialogues(path: Path, count: int = 40) -> Path:
    """The answer repeats the question's last word: a rule that a tiny model begins to learn."""
    words = ["red", "blue", "green", "black"]
    rows = [
        {"prompt": f"say it {index % 10}: {words[index % 4]}", "response": words[index % 4]} for index in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(tmp_path: Path, **changes: Any) -> SftConfig:
    data = [{"name": "words", "path": str(write_dialogues(tmp_path / "words.jsonl")), "held_out": 0.2}]
    values: dict[str, Any] = {"name": "toy", "new_model": SHAPE, "data": data, "max_length": 64, "batch": 8}
    return SftConfig.model_validate(
        values | {"micro_batch": 8, "epochs": 10, "lr": 1e-2, "checkpoint_steps": 4} | changes
    )


def train(settings: SftConfig, target: Path, *, resume: bool = False, say: Any = lambda _: None) -> SftResult:
    return run(
        settings, target, device=CPU, keeper=RunFolder(target.with_name("run"), checkpoint_seconds=math.inf),
        resume=resume, say=say,
    )  # fmt: skip


def test_what_is_written_is_a_causal_model_with_a_chat_template(tmp_path: Path) -> None:
    settings = config(tmp_path)
    said: list[str] = []
    result = train(settings, tmp_path / "policy", say=said.append)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert sum(parameter.numel() for parameter in model.parameters()) == result.parameters
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "say it 3: red"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "<|begin|><|user|>say it 3: red<|end|><|assistant|>"
    # Held-out loss, by hand: the mean over the responses' tokens and the token that ends them, of one batch.
    _, held_out = load_dialogues(settings)
    assert 0 < len(held_out) <= 8
    losses = []
    for one in held_out:
        ids = tokenizer(f"<|begin|><|user|>{one.prompt}<|end|><|assistant|>{one.response}<|end|>")["input_ids"]
        answer = len(tokenizer(f"<|begin|><|user|>{one.prompt}<|end|><|assistant|>")["input_ids"])
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-float(logits[place - 1, ids[place]]) for place in range(answer, len(ids))]
    assert result.held_out_loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert result.held_out_loss < 0.7 * math.log(len(tokenizer))  # it has learned something
    assert any("held-out loss" in line for line in said)
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert (result.examples, result.held_out) == (len(load_dialogues(settings)[0]), len(held_out))


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    settings = config(tmp_path)
    train(settings, tmp_path / "whole" / "policy")
    (tmp_path / "parts").mkdir()
    target = tmp_path / "parts" / "policy"
    keeper = RunFolder(target.with_name("run"), checkpoint_seconds=math.inf)
    keeper.ask_to_stop()
    with pytest.raises(TrainingInterrupted, match="--resume"):
        run(settings, target, device=CPU, keeper=keeper, resume=False, say=lambda _: None)
    assert not target.exists()
    keeper._lock.release()
    with pytest.raises(ConfigError, match="of another run: lr"):
        train(config(tmp_path, lr=1e-3), target, resume=True)
    train(settings, target, resume=True)
    whole, parts = (
        load_file(folder / "policy" / "model.safetensors") for folder in (tmp_path / "whole", tmp_path / "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_model_that_is_there_is_trained_on_by_an_adapter(tmp_path: Path) -> None:
    train(config(tmp_path), tmp_path / "first" / "policy")
    settings = config(tmp_path, new_model=None, model=str(tmp_path / "first" / "policy"), lora={"rank": 4, "alpha": 8})
    result = train(settings, tmp_path / "second" / "policy")
    before, after = (load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("first", "second"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}  # every linear layer, and nothing else
    assert result.held_out_loss is not None


def test_the_command(tmp_path: Path) -> None:
    settings = config(tmp_path).model_dump(mode="json")
    settings["data"][0]["path"] = "words.jsonl"
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(settings))
    options = ["sft", str(path), "--out", str(tmp_path / "policy"), "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout.strip().splitlines()[-1])
    assert said["folder"] == str(tmp_path / "policy")
    assert said["steps"] > 0
    assert (tmp_path / "policy" / "chat_template.jinja").is_file()
    again = CliRunner().invoke(app, options)
    assert again.exit_code == 1
    assert "exists already" in again.output


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "x"}, "exactly one of model and new_model"),
        ({"revision": "x"}, "revision is of a model"),
        ({"max_length": 500}, "max_positions"),
        ({"micro_batch": 3}, "multiple of micro_batch"),
        ({"lora": {}}, "learns nothing"),
        ({"new_model": SHAPE | {"heads": 3}}, "heads must split"),
        ({"optimizer": "x"}, "optimizer"),
    ],
)
def test_configs_that_cannot_be_meant(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    values = config(tmp_path).model_dump(mode="json") | changes
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=says):
        read_sft_config(path)


ROWS: list[tuple[Any, str]] = [
    ([], "line"), ({}, "prompt"), ({"prompt": "a"}, "response"), ({"prompt": "a", "response": " "}, "response"),
    ({"prompt": "", "response": "b"}, "prompt"), ({"prompt": [], "response": "b"}, "prompt"),
    ({"messages": [{"role": "user", "content": "a"}]}, "messages"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
    ({"messages": [{"role": "nobody", "content": "a"}]}, "messages.0.role"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "field"), ROWS)
def test_rows_that_are_no_dialogue(row: Any, field: str) -> None:
    with pytest.raises(RowRejected) as rejected:
        dialogue_of_row(row)
    assert rejected.value.field == field


def test_both_forms_of_a_dialogue() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    told = dialogue_of_row({"messages": [*turns, {"role": "assistant", "content": "d"}], "prompt": "is not read"})
    asked = dialogue_of_row({"prompt": turns, "response": "d", "source": "x"})
    expected = {"prompt": turns, "completion": [{"role": "assistant", "content": "d"}]}
    assert told.as_example() == asked.as_example() == expected
    assert dialogue_of_row({"prompt": "a", "response": "d"}).as_example()["prompt"] == turns[:1]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    settings = config(tmp_path)
    with (tmp_path / "words.jsonl").open("a") as stream:
        stream.write('{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"words\.jsonl, line 41: response"):
        load_dialogues(settings)


def test_every_text_can_be_said_in_a_new_tokenizer() -> None:
    tokenizer = train_tokenizer(["only these few words"], 300)
    for text in ("héllo 😀 12345\n\t", "</s> <|user|"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ids = tokenizer("12")["input_ids"]
    assert len(ids) == 2


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    settings = config(tmp_path, new_model=None, model=str(tmp_path))
    with pytest.raises(QuorumError, match="cannot be loaded"):
        train(settings, tmp_path / "policy")
