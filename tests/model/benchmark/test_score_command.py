"""`quorum bench score` on a tiny backbone: every figure is there or says why not, and wrong scores are refused."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from quorum_client.cli import app
from quorum_model.benchmark import contest, sweep
from quorum_model.benchmark.environment import has_bf16_instructions
from quorum_model.benchmark.padded import PaddedPeft
from quorum_model.benchmark.score import choose_bench_dtype
from tests.model.benchmark.conftest import TOKEN_BUDGET
from tests.model.benchmark.tiny_backbone import save_tiny_backbone

NEEDED = (
    "fraction_of_peak", "ratio_peft_sequential", "ratio_peft_sequential_same_dtype", "ratio_peft_mixed_batch",
    "ratio_peft_padding_free", "ratio_peft_padded_unsorted", "ratio_vllm", "ratio_over_one_model",
)  # fmt: skip
SMALL = ("--sequences", "4", "--members", "2", "--rank", "2", "--rounds", "1", "--max-length", "40",
         "--median-length", "12", "--dtype", "float32", "--device", "cpu", "--json")  # fmt: skip


def run(*options: str) -> Any:
    return CliRunner().invoke(app, ["bench", "score", *options])


def said(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return str(save_tiny_backbone("bert", tmp_path / "backbone"))


@pytest.mark.parametrize("kind", ["lora", "singles", "linear"])
def test_every_figure_or_its_reason(kind: str, backbone: str) -> None:
    found = said(run("--backbone", backbone, "--kind", kind, "--layers", "top-third", *SMALL))
    for name in NEEDED:
        assert (found[name] is None) == (name in found["reasons"]), name
        assert found[name] is None or found[name] > 0
    missing = {"ratio_vllm", "ratio_peft_padding_free", "ratio_peft_padded_unsorted"}  # the last two: on CUDA
    if kind == "linear":
        missing |= {name for name in NEEDED if "peft" in name}
    assert set(found["reasons"]) == missing
    assert max(found["largest_difference"].values()) < 1e-4
    assert found["difference_from"] == ("quorum" if kind == "linear" else "peft_sequential")
    seconds = found["seconds"]
    assert found["median_seconds"] == {name: statistics.median(own) for name, own in seconds.items()}
    assert found["tokens_per_second"]["quorum"] == pytest.approx(2 * found["tokens"] / seconds["quorum"][0])
    assert found["ratio_over_one_model"] == pytest.approx(seconds["quorum"][0] / seconds["one_model"][0])
    # The trunk once, the rest K times; the last layer, whose pooled token is one, is smaller.
    tokens, texts, d, ffn = found["tokens"], found["sequences"], 32, 48
    layer, last = tokens * (4 * d * d + 2 * d * ffn), texts * (2 * d * d + 2 * d * ffn) + tokens * 2 * d * d
    expected = {"lora": 2 * layer + 2 * last, "singles": 4 * layer + 2 * last, "linear": 2 * layer + last}[kind]
    assert found["model_flops"]["linears"] == 2 * expected
    assert found["token_budget"] == {"quorum": TOKEN_BUDGET, "one_model": TOKEN_BUDGET}
    assert found["environment"]["packages"]["torch"]


def test_real_dialogues(backbone: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"how are you {word}", "chosen": f"fine {word}", "rejected": "no"} for word in ("one", "two")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = said(run("--backbone", backbone, "--data", str(path), *SMALL))
    assert (found["data"], found["sequences"]) == ("pairs.jsonl", 4)
    result = run("--backbone", backbone, "--data", str(path), *SMALL, "--sequences", "5")
    assert result.exit_code == 1
    assert "holds 4 texts, 5 are needed" in result.output


def test_a_contestant_that_computes_something_else_is_refused(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = PaddedPeft.mixed

    def planted(self: PaddedPeft, *args: Any) -> Any:
        return right(self, *args) + np.float32(0.05)

    monkeypatch.setattr(PaddedPeft, "mixed", planted)
    result = run("--backbone", backbone, *SMALL)
    assert result.exit_code == 1
    assert "contestants_disagree: peft_mixed_batch is" in result.output


def test_a_batch_that_peft_does_not_mix_is_a_reason(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: PaddedPeft, *args: Any) -> Any:
        raise TypeError("no such batch")

    monkeypatch.setattr(PaddedPeft, "mixed", refuse)
    found = said(run("--backbone", backbone, *SMALL))
    assert found["ratio_peft_mixed_batch"] is None
    assert "no such batch" in found["reasons"]["ratio_peft_mixed_batch"]


def test_a_vllm_that_does_not_start_loses_no_other_figure(backbone: str, tmp_path: Path) -> None:
    found = said(run("--backbone", backbone, *SMALL, "--vllm-python", str(tmp_path / "absent")))
    assert found["ratio_vllm"] is None
    assert "cannot be started" in found["reasons"]["ratio_vllm"]
    assert found["ratio_peft_sequential"] > 0


def test_sweep_over_members(backbone: str, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    found = said(run("--backbone", backbone, *SMALL, "--sweep", "members", "--plot", str(plot)))
    assert [point["members"] for point in found["points"]] == [1, 2, 4, 8, 16]
    for point in found["points"]:
        expected = point["seconds"][0] / (found["tokens"] * point["members"]) * 1e9
        assert point["nanoseconds_per_token_member"] == pytest.approx(expected)
    assert found["largest_difference"] < 1e-4
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_sweep_over_sequences(backbone: str) -> None:
    found = said(run("--backbone", backbone, *SMALL, "--sweep", "sequences", "--sequences", "120"))
    assert [point["sequences"] for point in found["points"]] == [10, 100, 120]
    assert found["points"][2]["tokens"] == found["tokens"]


def test_sizes_that_disagree_are_refused(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = contest.Task.draw

    def planted(self: contest.Task, members: int | None = None) -> Any:
        drawn = right(self, members)
        if self.members == 4:  # another member than the first of the others
            drawn.states[0], drawn.states[1] = drawn.states[1], drawn.states[0]
            drawn.golden[:] = [
                item.model_copy(update={"scores": [item.scores[1], item.scores[0], *item.scores[2:]]})
                for item in drawn.golden
            ]
        return drawn

    monkeypatch.setattr(contest.Task, "draw", planted)
    result = run("--backbone", backbone, *SMALL, "--sweep", "members")
    assert result.exit_code == 1
    assert "contestants_disagree" in result.output


def test_a_plot_needs_a_sweep_and_matplotlib(backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plot = str(tmp_path / "plot.png")
    assert "give --sweep too" in run("--backbone", backbone, *SMALL, "--plot", plot).output
    sweeping = (*SMALL, "--sweep", "members", "--plot")
    assert "no such folder" in run("--backbone", backbone, *sweeping, str(tmp_path / "no" / "plot.png")).output
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("--backbone", backbone, *sweeping, plot)
    assert result.exit_code == 1
    assert "missing_extra" in result.output
    assert "trainer" in result.output
    assert sweep.MEMBERS == (1, 2, 4, 8, 16)


def test_auto_is_bf16_where_the_machine_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for flags, expected in (("fpu avx512_bf16", "bfloat16"), ("fpu avx512f avx2", "float32"), ("", "float32")):
        monkeypatch.setattr("quorum_model.benchmark.environment._cpuinfo", lambda *names, flags=flags: [flags])
        assert has_bf16_instructions() == (expected == "bfloat16")
        dtype, reason = choose_bench_dtype("auto", cpu)
        assert (dtype, reason is None) == (expected, expected == "bfloat16")
        assert choose_bench_dtype("bfloat16", cpu) == ("bfloat16", None)
        assert choose_bench_dtype("auto", cuda) == ("bfloat16", None)
