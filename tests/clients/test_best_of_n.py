"""Best-of-N: records against the rule of two fake servers, resume after a kill, and what is refused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner, Result

from quorum_client.async_client import AsyncClient
from quorum_client.best_of_n import Record, pick_best
from quorum_client.best_of_n.outputs import alpaca_eval_outputs
from quorum_client.cli import app
from quorum_client.errors import InvalidRequest, QuorumError
from quorum_client.generation import Generator, SamplingOptions, derive_seed
from tests.clients.fake_server import ENSEMBLE, answer, error_body
from tests.clients.generation.fake_generator import Behaviour, FakeGenerator, refusal, serve, text_of

NO_SCORE = {"score": None, "mean": None, "std": None, "members": None, "error": {"code": "empty_text", "message": "m"}}


class FakeRanker:
    """POST /rank by the fake server's rule; a candidate with the word `bad` cannot be scored."""

    def __init__(self) -> None:
        self.ensemble, self.bodies, self.failures = dict(ENSEMBLE), [], []  # type: ignore[var-annotated]
        self.url = ""
        self.app = Starlette(routes=[Route("/rank", self._rank, methods=["POST"])])

    async def _rank(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if self.failures:
            return self.failures.pop(0)
        reply = answer("POST", "/rank", body)
        for index, text in enumerate(body["candidates"]):
            if "bad" in text:
                reply["results"][index] |= NO_SCORE
        scored = [-1.0 if one["score"] is None else one["score"] for one in reply["results"]]
        reply["order"] = sorted(range(len(scored)), key=lambda index: -scored[index])
        reply |= {"best": reply["order"][0], "ensemble": self.ensemble, "center": body.get("center") or "group"}
        return JSONResponse(reply)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[FakeGenerator, FakeRanker]]:
    """One of each."""
    ranker, generator = FakeRanker(), FakeGenerator()
    with serve(ranker), serve(generator):  # type: ignore[arg-type]
        ranker.url = ranker.url.removesuffix("/v1")
        yield generator, ranker


@pytest.fixture
def generator(servers: tuple[FakeGenerator, FakeRanker]) -> FakeGenerator:
    """As good as new."""
    servers[0].behaviour = Behaviour()
    return servers[0]


@pytest.fixture
def ranker(servers: tuple[FakeGenerator, FakeRanker]) -> FakeRanker:
    """As good as new."""
    fake = servers[1]
    fake.ensemble, fake.bodies, fake.failures = dict(ENSEMBLE), [], []
    return fake


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> dict[str, dict[str, Any]]:
    return {line["prompt_id"]: line for line in map(json.loads, path.read_text("utf-8").splitlines())}


def run(ranker: FakeRanker, *args: object) -> Result:
    return CliRunner().invoke(app, ["best-of-n", "--url", ranker.url, *map(str, args)])


PROMPTS = [{"prompt_id": f"p{index}", "prompt": "x" * index + "?", "dataset": "toy"} for index in range(6)]


def test_every_candidate_its_scores_and_the_pick(generator: FakeGenerator, ranker: FakeRanker, tmp_path: Path) -> None:
    prompts, out = write(tmp_path / "prompts.jsonl", PROMPTS), tmp_path / "out.jsonl"
    args = ("--prompts", prompts, "--out", out, "--generator-url", generator.url, "--n", 4, "--seed", 3, "--json")
    result = run(ranker, *args, "--mode", "mean", "--temperature", 0.7)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["prompts"], summary["candidates"], summary["unpicked"]) == (6, 24, 0)
    records = read(out)
    assert set(records) == {row["prompt_id"] for row in PROMPTS}
    for row in PROMPTS:
        record, seed = records[row["prompt_id"]], derive_seed(3, row["prompt_id"])
        texts = [text_of(row["prompt"], seed + index) for index in range(4)]
        assert [one["text"] for one in record["candidates"]] == texts
        # The fake ensemble's members: length, length + 1, length + 2.
        assert [one["members"] for one in record["candidates"]] == [[len(t), len(t) + 1, len(t) + 2] for t in texts]
        assert record["pick"] == max(range(4), key=lambda index: (len(texts[index]), -index))
        assert record["extra"] == {"dataset": "toy"}
        assert record["generation"]["seed"] == seed
        assert record["generation"]["usage"] == {"prompt_tokens": len(row["prompt"]), "completion_tokens": 12}
        assert (record["ensemble"], record["mode"], record["center"]) == (ENSEMBLE, "mean", "group")
    assert {body["temperature"] for body in generator.behaviour.bodies} == {0.7}


def test_the_same_run_gives_the_same_records(generator: FakeGenerator, ranker: FakeRanker, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", PROMPTS)
    args = ("--prompts", prompts, "--generator-url", generator.url, "--n", 3)
    for out in ("one", "two"):
        assert run(ranker, *args, "--out", tmp_path / out).exit_code == 0
    assert read(tmp_path / "one") == read(tmp_path / "two")


def test_given_candidates_need_no_generator(ranker: FakeRanker, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "candidates": ["bad", {"text": "four", "gold": 0.5, "generator": "g"}, "six six"]},
        {"prompt": [{"role": "user", "content": "b"}], "candidates": ["bad", "bad too"]},
        {"prompt": "c", "candidates": ["only"]},
    ]
    out = tmp_path / "out.jsonl"
    result = run(ranker, "--prompts", write(tmp_path / "p.jsonl", rows), "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["unpicked"] == 1
    first, second, third = (read(out)[name] for name in ("0", "1", "2"))
    # What could not be scored is told, and never picked, nor is anything made up for it.
    assert (first["pick"], first["order"][-1]) == (2, 0)
    assert first["candidates"][0]["error"]["code"] == "empty_text"
    assert first["candidates"][0]["score"] is None
    assert first["candidates"][1]["gold"] == 0.5
    assert (second["pick"], second["error"]["code"]) == (None, "nothing_to_pick")
    assert second["candidates"][1]["error"]["code"] == "empty_text"
    # A single candidate has no group to be centred by.
    assert (third["pick"], third["center"]) == (0, "none")
    assert first["center"] == "group"
    assert first["generation"] is None


def test_a_prompt_that_the_generator_refuses_is_told(
    generator: FakeGenerator, ranker: FakeRanker, tmp_path: Path
) -> None:
    generator.behaviour.failures = [refusal(400, "longer than the context")]
    out = tmp_path / "out.jsonl"
    args = ("--prompts", write(tmp_path / "p.jsonl", PROMPTS[:2]), "--out", out, "--generator-url", generator.url)
    assert run(ranker, *args, "--at-once", 1).exit_code == 0
    first, second = (read(out)[name] for name in ("p0", "p1"))
    assert (first["pick"], first["candidates"], first["error"]["code"]) == (None, [], "generator_refused")
    assert "longer than the context" in first["error"]["message"]
    assert second["pick"] is not None


def test_a_server_that_fails_stops_the_run_and_a_later_one_goes_on(
    generator: FakeGenerator, ranker: FakeRanker, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    args = (
        "--prompts", write(tmp_path / "p.jsonl", PROMPTS), "--out", out, "--generator-url", generator.url,
        "--n", 2, "--at-once", 1,
    )  # fmt: skip
    assert run(ranker, *args).exit_code == 0
    whole = read(out)
    out.unlink()
    seen = 0

    async def rank(request: Request) -> Response:
        nonlocal seen
        seen += 1
        if seen == 4:
            return JSONResponse(error_body("ensemble_not_found", "gone"), 404)
        return await original(request)

    original, route = ranker._rank, ranker.app.routes[0]
    ranker.app.routes[0] = Route("/rank", rank, methods=["POST"])
    try:
        result = run(ranker, *args)
    finally:
        ranker.app.routes[0] = route
    assert result.exit_code == 1
    assert "3 prompts" in result.stderr
    assert len(read(out)) == 3
    with out.open("ab") as file:
        file.write(b'{"prompt_id": "p4", "pro')  # as a killed run leaves it
    result = run(ranker, *args, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["kept"], summary["prompts"]) == (3, 3)
    assert read(out) == whole


def test_a_killed_run_is_continued(generator: FakeGenerator, ranker: FakeRanker, tmp_path: Path) -> None:
    generator.behaviour.delay_s = 0.2
    out, prompts = tmp_path / "out.jsonl", write(tmp_path / "p.jsonl", PROMPTS)
    args = [
        "best-of-n", "--url", ranker.url, "--prompts", str(prompts), "--out", str(out), "--generator-url",
        generator.url, "--n", "2", "--at-once", "1",
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "quorum_client.cli", *args])
    ends = time.monotonic() + 60
    while not (out.exists() and out.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < ends
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = out.read_bytes()
    generator.behaviour.delay_s = 0.0
    assert CliRunner().invoke(app, args).exit_code == 0
    assert out.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert len(out.read_text().splitlines()) == len(PROMPTS)
    assert set(read(out)) == {row["prompt_id"] for row in PROMPTS}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--n", 3], "was generated with"),
        (["--seed", 1], "was generated with"),
        (["--mode", "lcb"], "was ranked with mode mean"),
        (["--ensemble", "other"], "was ranked with ensemble default"),
        (["--ensemble", "default@000000000000"], "was ranked with ensemble default@0123456789ab"),
    ],
)
def test_other_options_are_not_mixed_into_a_file(
    generator: FakeGenerator, ranker: FakeRanker, tmp_path: Path, changes: list[object], message: str
) -> None:
    out = tmp_path / "out.jsonl"
    args = ("--prompts", write(tmp_path / "p.jsonl", PROMPTS), "--out", out, "--generator-url", generator.url, "--n", 2)
    assert run(ranker, *args).exit_code == 0
    before = out.read_bytes()
    result = run(ranker, *args, *changes)
    assert result.exit_code == 1
    assert message in result.stderr.replace("\n", " ")
    assert out.read_bytes() == before


def test_another_version_is_not_mixed_into_a_file(generator: FakeGenerator, ranker: FakeRanker, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    few, all_of_them = write(tmp_path / "few.jsonl", PROMPTS[:2]), write(tmp_path / "all.jsonl", PROMPTS)
    args = ("--out", out, "--generator-url", generator.url, "--n", 2)
    assert run(ranker, "--prompts", few, *args).exit_code == 0
    before = out.read_bytes()
    ranker.ensemble["version"] = "ba9876543210"
    result = run(ranker, "--prompts", all_of_them, *args)
    assert result.exit_code == 1
    assert "the next answer is by" in result.stderr.replace("\n", " ")
    assert out.read_bytes() == before


@pytest.mark.parametrize("content", ["my only notes", "{}\n", "[1]\n", '{"prompt_id": 3}\n', '{"prompt_i'])
def test_another_file_is_left_as_it_is(
    generator: FakeGenerator, ranker: FakeRanker, tmp_path: Path, content: str
) -> None:
    out, is_torn = tmp_path / "out.jsonl", content == '{"prompt_i'
    out.write_text(content)
    args = ("--prompts", write(tmp_path / "p.jsonl", PROMPTS), "--out", out, "--generator-url", generator.url, "--n", 2)
    result = run(ranker, *args)
    assert result.exit_code == (0 if is_torn else 1), result.output
    assert (out.read_text() == content) is not is_torn


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', "line 2: is not JSON"),
        ('{"prompt": ""}\n', "line 1"),
        ('{"prompt": "a", "instruction": "b"}\n', "both a prompt and an instruction"),
        ('{"prompt": "a", "prompt_id": 1}\n{"prompt": "b", "prompt_id": "1"}\n', "is there already"),
        ('{"prompt": "a", "candidates": []}\n', "line 1: candidates"),
        ('{"prompt": "a", "candidates": [{"gold": 1}]}\n', "line 1: candidates"),
        ('{"prompt": [{"role": "user"}]}\n', "line 1: prompt"),
        ("\n", "holds no prompts"),
    ],
)
def test_bad_prompts_are_refused_by_line(ranker: FakeRanker, tmp_path: Path, content: str, message: str) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(content)
    result = run(ranker, "--prompts", prompts, "--out", tmp_path / "out", "--generator-url", "http://127.0.0.1:9/v1")
    assert result.exit_code == 1
    assert message in result.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_wrong_usage_is_told_before_anything_is_asked(ranker: FakeRanker, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", PROMPTS)
    given = write(tmp_path / "g.jsonl", [{"prompt": "a", "candidates": ["b"]}])
    url = ("--generator-url", "http://127.0.0.1:9/v1")
    for args, message in (
        (("--prompts", prompts, "--out", tmp_path / "out"), "give --generator-url"),
        (("--prompts", given, "--out", tmp_path / "out", *url), "would write none"),
        (("--prompts", prompts, "--out", tmp_path / "gone" / "out", *url), "cannot be a file"),
    ):
        result = run(ranker, *args)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.replace("│", " ").split())


def test_alpaca_evals_file(generator: FakeGenerator, ranker: FakeRanker, tmp_path: Path) -> None:
    rows = [{"instruction": "a", "dataset": "helpful_base"}, {"instruction": "b"}]
    out, target = tmp_path / "out.jsonl", tmp_path / "outputs.json"
    result = run(
        ranker, "--prompts", write(tmp_path / "p.jsonl", rows), "--out", out, "--generator-url", generator.url,
        "--n", 2, "--alpaca-eval", target, "--name", "mine",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    outputs = json.loads(target.read_text())
    assert [one["instruction"] for one in outputs] == ["a", "b"]
    assert [one["dataset"] for one in outputs] == ["helpful_base", "quorum"]
    assert {one["generator"] for one in outputs} == {"mine"}
    records = read(out)
    assert [one["output"] for one in outputs] == [Record(records[name]).picked for name in ("0", "1")]


def test_no_output_is_made_up_for_alpaca_eval(ranker: FakeRanker, tmp_path: Path) -> None:
    prompts, target = write(tmp_path / "p.jsonl", [{"prompt": "a", "candidates": ["bad"]}]), tmp_path / "o.json"
    result = run(ranker, "--prompts", prompts, "--out", tmp_path / "out", "--alpaca-eval", target)
    assert result.exit_code == 1
    assert "1 prompts have no pick" in result.stderr
    assert not target.exists()
    dialogue = Record(
        {"prompt_id": "d", "prompt": [{"content": "a"}, {"content": "b"}], "candidates": [{"text": "c"}], "pick": 0,
         "extra": {}}
    )  # fmt: skip
    with pytest.raises(InvalidRequest, match="is a dialogue"):
        alpaca_eval_outputs([dialogue], "x")


def test_one_prompt_from_python(generator: FakeGenerator, ranker: FakeRanker) -> None:
    async def go() -> Record:
        async with Generator(generator.url) as writer, AsyncClient(ranker.url) as client:
            sampling = SamplingOptions(n=3, seed=5)
            return await pick_best("why", ranker=client, generator=writer, model="base", sampling=sampling, mode="mean")

    record = asyncio.run(go())
    seed = derive_seed(5, "0")
    texts = [text_of("why", seed + index) for index in range(3)]
    assert record.picked == max(texts, key=len)
    assert [one["text"] for one in record.line["candidates"]] == texts


def test_an_error_of_the_server_is_raised(generator: FakeGenerator, ranker: FakeRanker) -> None:
    ranker.failures = [JSONResponse(error_body("ensemble_not_found", "no such ensemble"), 404)]

    async def go() -> None:
        async with Generator(generator.url) as writer, AsyncClient(ranker.url) as client:
            await pick_best("why", ranker=client, generator=writer, model="base", sampling=SamplingOptions(n=2))

    with pytest.raises(QuorumError, match="no such ensemble"):
        asyncio.run(go())


QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["w1", "w2", "w3"]},
    {"question_id": 111, "category": "math", "turns": ["m1", "m2"]},
]


def test_turns_follow_the_picks_and_mt_benchs_file(
    generator: FakeGenerator, ranker: FakeRanker, tmp_path: Path
) -> None:
    prompts, out, target = write(tmp_path / "q.jsonl", QUESTIONS), tmp_path / "out.jsonl", tmp_path / "answers.jsonl"
    args = ("--prompts", prompts, "--out", out, "--generator-url", generator.url, "--n", 2, "--mt-bench", target)
    result = run(ranker, *args, "--name", "mine")
    assert result.exit_code == 0, result.output
    records = read(out)
    assert set(records) == {"81", "111", "81/2", "111/2", "81/3"}
    picked = {name: Record(line).picked for name, line in records.items()}
    told = [("user", "w1"), ("assistant", picked["81"]), ("user", "w2"), ("assistant", picked["81/2"]), ("user", "w3")]
    assert [(turn["role"], turn["content"]) for turn in records["81/3"]["prompt"]] == told
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(one["question_id"], one["model_id"]) for one in answers] == [(81, "mine"), (111, "mine")]
    assert [one["choices"] for one in answers] == [
        [{"index": 0, "turns": [picked["81"], picked["81/2"], picked["81/3"]]}],
        [{"index": 0, "turns": [picked["111"], picked["111/2"]]}],
    ]
    # Continued in the middle of the second turns: what is there stays, and the rest is the same.
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:20])
    target.unlink()
    generator.behaviour = Behaviour()
    assert run(ranker, *args, "--name", "mine").exit_code == 0
    assert len(generator.behaviour.bodies) == 2
    assert read(out) == records
    # A changed first turn is another run.
    other = write(tmp_path / "q.jsonl", [{**QUESTIONS[0], "turns": ["w1", "other", "w3"]}, QUESTIONS[1]])
    refused = run(ranker, "--prompts", other, *args[2:])
    assert refused.exit_code == 1
    assert "of a prompt that this run does not have" in refused.stderr


def test_a_dialogue_without_a_pick_ends_there(generator: FakeGenerator, ranker: FakeRanker, tmp_path: Path) -> None:
    rows = [{"question_id": 1, "turns": ["bad", "x"]}, QUESTIONS[1]]
    prompts, out, target = write(tmp_path / "q.jsonl", rows), tmp_path / "out.jsonl", tmp_path / "answers.jsonl"
    url = ("--generator-url", generator.url)
    result = run(ranker, "--prompts", prompts, "--out", out, *url, "--n", 2, "--mt-bench", target)
    assert result.exit_code == 1
    assert "question 1, turn 1 has no pick" in result.stderr
    assert set(read(out)) == {"1", "111", "111/2"}
    assert not target.exists()
    single = run(ranker, "--prompts", write(tmp_path / "p.jsonl", PROMPTS), "--out", out, *url, "--mt-bench", target)
    assert single.exit_code == 2
