"""Judging end to end with a stand-in judge on a real socket, and its arithmetic by hand."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typer.testing import CliRunner, Result

from quorum_client.cli import app
from quorum_client.errors import InvalidRequest, MissingExtra
from quorum_trainer.judging.alpacaeval import Pairing, length_controlled, preferences, win_rate
from quorum_trainer.judging.judge import Judgement
from quorum_trainer.judging.templates import Template, read_alpaca_template, read_fastchat_prompts
from quorum_trainer.judging.verdicts import read_preference, read_rating, weigh_tokens
from tests.clients.generation.fake_generator import FakeGenerator, refusal, serve

PAIRWISE = """<|im_start|>system
You compare.
<|im_end|>
<|im_start|>user
{"instruction": "{instruction}"} m: {output_1} M: {output_2}
<|im_end|>"""
FASTCHAT = "Question {instruction} A: {output_1} B: {output_2}. Answer [[A]], [[B]] or [[C]]."


class FakeJudge(FakeGenerator):
    """Prefers the longer output and rates by length; `says` overrules it."""

    def __init__(self) -> None:
        super().__init__()
        self.says: Any = None

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        body = await request.json()
        self.behaviour.bodies.append(body)
        if self.behaviour.failures:
            return self.behaviour.failures.pop(0)
        text = body["messages"][-1]["content"]
        said = self.says(text) if self.says is not None else self.by_length(text)
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": said}}
        if body.get("logprobs"):
            top = [{"token": "m", "logprob": math.log(0.3)}, {"token": "M", "logprob": math.log(0.1)}]
            choice["logprobs"] = {"content": [{"token": "m", "logprob": 0.0, "top_logprobs": top}]}
        return JSONResponse({"choices": [choice]})

    def by_length(self, text: str) -> str:
        if " M: " in text:
            first, second = text.partition(" m: ")[2].split(" M: ")
            return "m" if len(first) > len(second) else "M"
        first, second = text.partition(" A: ")[2].partition(". Answer")[0].split(" B: ")
        return "[[C]]" if len(first) == len(second) else "I say [[A]]" if len(first) > len(second) else "So [[B]]"


@pytest.fixture
def judge() -> Iterator[FakeJudge]:
    with serve(FakeJudge()) as fake:
        assert isinstance(fake, FakeJudge)
        yield fake


def write_outputs(path: Path, outputs: dict[str, str]) -> Path:
    path.write_text(json.dumps([{"instruction": k, "output": v, "generator": "x"} for k, v in outputs.items()]))
    return path


def alpacaeval(judge: FakeJudge, folder: Path, *options: str, template: str = FASTCHAT, **given: Any) -> Result:
    outputs = given.get("outputs", {"a": "long answer", "b": "no", "c": "same", "d": "a longer answer"})
    base = given.get("baseline", {"a": "short", "b": "longer", "c": "sane", "d": "x"})
    (folder / "template.txt").write_text(template)
    args = [
        "--outputs",
        write_outputs(folder / "o.json", outputs),
        "--baseline",
        write_outputs(folder / "b.json", base),
    ]
    args += ["--judge-url", judge.url, "--judge-model", "judge", "--out", folder / "said.jsonl"]
    args += ["--template", folder / "template.txt", *options, "--json"]
    return CliRunner().invoke(app, ["eval", "alpacaeval", *map(str, args)])


def figures(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout.strip().splitlines()[-1]))


@pytest.mark.parametrize("template", [FASTCHAT, PAIRWISE])
def test_a_win_rate_in_both_orders(template: str, judge: FakeJudge, tmp_path: Path) -> None:
    found = figures(alpacaeval(judge, tmp_path, template=template))
    tie = 0.5  # [[C]] twice; or M both times, which is each of the two once
    assert found["preferences"] == [1.0, 0.0, tie, 1.0]
    assert found["win_rate"] == pytest.approx(100 * 2.5 / 4)
    assert found["standard_error"] == pytest.approx(100 * statistics.stdev([1, 0, tie, 1]) / 2)
    assert (found["wins"], found["draws"], found["losses"], found["failed"]) == (2, 1, 1, 0)
    assert len(judge.behaviour.bodies) == 8
    assert all(body["temperature"] == 0 for body in judge.behaviour.bodies)
    if template == PAIRWISE:
        assert judge.behaviour.bodies[0]["messages"][0] == {"role": "system", "content": "You compare."}


def test_what_was_judged_is_not_asked_again(judge: FakeJudge, tmp_path: Path) -> None:
    judge.behaviour.failures[:] = [refusal(401, "no key")]
    stopped = alpacaeval(judge, tmp_path, "--at-once", "1")
    assert stopped.exit_code == 1
    assert "the judge answered 401" in stopped.output
    first = figures(alpacaeval(judge, tmp_path))
    asked = len(judge.behaviour.bodies)
    with (tmp_path / "said.jsonl").open("ab") as stream:
        stream.write(b'{"key": "torn')
    assert figures(alpacaeval(judge, tmp_path)) == first
    assert len(judge.behaviour.bodies) == asked
    figures(alpacaeval(judge, tmp_path, template=FASTCHAT + " Be fair."))
    assert len(judge.behaviour.bodies) == asked + 8
    (tmp_path / "said.jsonl").write_text("my notes\n")
    refused = alpacaeval(judge, tmp_path)
    assert refused.exit_code == 1
    assert "is no judgement" in refused.output
    assert (tmp_path / "said.jsonl").read_text() == "my notes\n"


def test_judgements_that_say_nothing_are_counted_and_left_out(judge: FakeJudge, tmp_path: Path) -> None:
    judge.says = lambda text: "I cannot say" if "Question b" in text else judge.by_length(text)
    judge.behaviour.failures[:] = [refusal(400, "too long")]
    result = alpacaeval(judge, tmp_path, "--at-once", "1")
    found = figures(result)
    assert found["preferences"] == [None, None, 0.5, 1.0]
    assert found["failed"] == 2
    assert found["win_rate"] == 75.0
    assert "2 of 4 pairs have no judgement that counts" in result.output


def test_weighted_by_the_tokens_probabilities(judge: FakeJudge, tmp_path: Path) -> None:
    found = figures(alpacaeval(judge, tmp_path, "--weighted", template=PAIRWISE))
    # The first of each question is preferred by 0.3 / 0.4: for the baseline in one order, for the answer in the other.
    assert found["preferences"] == pytest.approx([0.5] * 4)
    assert all(body["top_logprobs"] == 5 for body in judge.behaviour.bodies)


def test_an_answer_without_a_baseline_is_no_silent_omission(judge: FakeJudge, tmp_path: Path) -> None:
    result = alpacaeval(judge, tmp_path, baseline={"a": "x"})
    assert result.exit_code == 1
    assert "3 of 4 instructions have no answer of the baseline" in result.output
    assert judge.behaviour.bodies == []


def test_alpaca_evals_own_prompt_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorum_trainer.judging.templates.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="alpaca_eval"):
        read_alpaca_template(None)


def test_length_control_is_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    pairings = [Pairing("a", "answer", "base"), Pairing("b", "x", "y")]
    assert length_controlled(pairings, [1.0, None]) == (None, "pip install alpaca_eval")
    seen: list[Any] = []

    class Metrics:
        @staticmethod
        def get_length_controlled_winrate(rows: Any, save_weights_dir: Any) -> dict[str, float]:
            seen.extend(rows)
            if len(rows) > 1:
                raise ValueError("no network\nmore")
            return {"length_controlled_winrate": 61.5}

    monkeypatch.setattr("quorum_trainer.judging.alpacaeval.import_module", lambda _: Metrics)
    assert length_controlled(pairings, [1.0, None]) == (61.5, None)
    assert (seen[0]["output_1"], seen[0]["output_2"], seen[0]["preference"]) == ("base", "answer", 2.0)
    assert length_controlled(pairings, [1.0, 0.0]) == (None, "alpaca_eval: ValueError: no network")


def test_blanks_are_filled_once() -> None:
    template = Template("t", (("user", "{instruction} {output_1} {output_2} {} { not_a_blank }"),))
    (message,) = template.fill({"instruction": "{output_1}", "output_1": "one", "output_2": "{instruction}"})
    assert message["content"] == "{output_1} one {instruction} {} { not_a_blank }"
    with pytest.raises(InvalidRequest, match="output_2"):
        template.fill({"instruction": "", "output_1": ""})


@pytest.mark.parametrize(
    ("text", "preference"),
    [("[[A]]", 1.0), ("so [[B]].", 0.0), ("[[C]]", 0.5), ("m", 1.0), (" M\n", 0.0), ("A", None), ("", None)],
)
def test_verdicts(text: str, preference: float | None) -> None:
    assert read_preference(text) == preference


@pytest.mark.parametrize(
    ("text", "rating"), [("Rating: [[7]]", 7.0), ("[[8.5]] and [[2]]", 8.5), ("[3]", 3.0), ("7/10", None)]
)
def test_ratings(text: str, rating: float | None) -> None:
    assert read_rating(text) == rating


def test_tokens_without_m_say_nothing() -> None:
    assert weigh_tokens({"the": -0.1}) is None
    assert weigh_tokens({"m": -1.0}) == 1.0


def test_win_rates_of_recorded_gold() -> None:
    """Gold is the judge's probability that an answer beats the baseline: the win rate is its mean."""
    gold = [0.91, 0.02, 0.5, 0.33]
    said = [one for g in gold for one in (Judgement("", "", {"m": math.log(1 - g), "M": math.log(g)}),
                                          Judgement("", "", {"m": math.log(g), "M": math.log(1 - g)}))]  # fmt: skip
    found = preferences(said, weighted=True)
    assert found == pytest.approx(gold)
    assert win_rate(found).win_rate == pytest.approx(100 * statistics.fmean(gold))
    assert (win_rate(found).wins, win_rate(found).losses) == (1, 2)
    nothing = win_rate([None])
    assert (nothing.win_rate, nothing.failed) == (None, 1)


PROMPTS = [
    ("single-v1", "", "Q {question} A {answer}"),
    ("single-math-v1", "", "Q {question} R {ref_answer_1} A {answer}"),
    ("single-v1-multi-turn", "S", "Q {question_1} A {answer_1} Q {question_2} A {answer_2}"),
    ("single-math-v1-multi-turn", "S", "R {ref_answer_1} R {ref_answer_2} Q {question_2} A {answer_1} A {answer_2}"),
]


def write_mt_bench(folder: Path) -> list[str]:
    def lines(name: str, rows: list[dict[str, Any]]) -> str:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(folder / name)

    rows = [
        {"question_id": 81, "category": "writing", "turns": ["w1", "w2"]},
        {"question_id": 111, "category": "math", "turns": ["m1", "m2"]},
    ]
    answers = [
        {"question_id": n, "model_id": "x", "choices": [{"index": 0, "turns": [f"a{n}1", f"a{n}2"]}]} for n in (81, 111)
    ]
    known = [{"question_id": 111, "choices": [{"index": 0, "turns": ["r1", "r2"]}]}]
    prompts = [{"name": n, "system_prompt": s, "prompt_template": t} for n, s, t in PROMPTS]
    return [
        "--questions", lines("q.jsonl", rows), "--answers", lines("a.jsonl", answers),
        "--references", lines("r.jsonl", known), "--judge-prompts", lines("p.jsonl", prompts),
    ]  # fmt: skip


def test_mt_bench(judge: FakeJudge, tmp_path: Path) -> None:
    said = {"Q w1 A a811": "Rating: [[8]]", "Q w1 A a811 Q w2 A a812": "[[6]]", "Q m1 R r1 A a1111": "[[3]]",
            "R r1 R r2 Q m2 A a1111 A a1112": "nothing"}  # fmt: skip
    judge.says = lambda text: said[text]
    options = ["--judge-url", judge.url, "--judge-model", "j", "--out", str(tmp_path / "said.jsonl"), "--json"]
    given = write_mt_bench(tmp_path)
    result = CliRunner().invoke(app, ["eval", "mtbench", *given, *options])
    found = figures(result)
    assert found["average"] == pytest.approx((8 + 6 + 3) / 3)
    assert found["by_turn"] == {"1": 5.5, "2": 6.0}
    assert found["by_category"] == {"math": 3.0, "writing": 7.0}
    assert found["failed"] == 1
    assert "1 of 4 turns" in result.output
    without = CliRunner().invoke(app, ["eval", "mtbench", *given[:4], *given[6:], *options])
    assert without.exit_code == 1
    assert "question 111 (math) is rated with a reference answer" in without.output


def test_fastchats_prompts_are_read_by_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"name": "a", "system_prompt": "", "prompt_template": "x"}\n\n{"name": "b"}\n')
    with pytest.raises(InvalidRequest, match="line 3"):
        read_fastchat_prompts(path)
