"""`quorum eval alpacaeval` and `quorum eval mtbench`: answers in, figures by a judge out.

files  --questions-->  Judge, with its journal  --figures-->  a table on stderr, one JSON line on stdout
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from quorum_client.generation import Generator
from quorum_trainer.judging import alpacaeval as alpaca
from quorum_trainer.judging import mtbench as mt
from quorum_trainer.judging.judge import Judge, Judgement, Question
from quorum_trainer.judging.templates import read_alpaca_template, read_fastchat_prompts

console = Console(stderr=True)

JudgeUrl = Annotated[str, typer.Option(help="Server with OpenAI's API, with its /v1; key: QUORUM_JUDGE_API_KEY.")]
JudgeModel = Annotated[str, typer.Option(help="The judge.")]
Out = Annotated[Path, typer.Option(help="Judgements, one JSON line each; an existing file is continued.")]
AtOnce = Annotated[int, typer.Option(min=1, help="Judgements under way at once.")]
PrintJson = Annotated[bool, typer.Option("--json", help="End stdout with one JSON object.")]


def alpacaeval(  # noqa: PLR0913 - the options of a command are its interface
    *,
    outputs: Annotated[Path, typer.Option(help="AlpacaEval's model_outputs (quorum best-of-n --alpaca-eval).")],
    baseline: Annotated[Path, typer.Option(help="The same of what they are compared with.")],
    judge_url: JudgeUrl,
    judge_model: JudgeModel,
    out: Out,
    template: Annotated[
        Path | None, typer.Option(help="The judge's prompt. Default: the installed alpaca_eval's classifier.")
    ] = None,
    weighted: Annotated[
        bool, typer.Option("--weighted", help="By the probabilities of m and M, as alpaca_eval's weighted annotator.")
    ] = False,
    at_once: AtOnce = 8,
    print_json: PrintJson = False,
) -> None:
    """Win rate of answers over a baseline's, every pair judged in both orders."""
    pairings = alpaca.pair_up(alpaca.read_outputs(outputs), alpaca.read_outputs(baseline))
    prompt = read_alpaca_template(template)
    asked = alpaca.questions(pairings, prompt)
    said = _judge(asked, judge_url, judge_model, out, at_once, weighted=weighted)
    found = alpaca.preferences(said, weighted=weighted)
    result = alpaca.win_rate(found)
    controlled, reason = alpaca.length_controlled(pairings, found)
    figures: dict[str, Any] = {
        "eval": "alpacaeval",
        "judge": judge_model,
        "prompt": prompt.name,
        "weighted": weighted,
        "instructions": len(pairings),
        **asdict(result),
        "length_controlled_win_rate": controlled,
        "reasons": {} if reason is None else {"length_controlled_win_rate": reason},
    }
    _warn(result.failed, len(pairings), "pairs")
    _show(
        "AlpacaEval",
        {
            "win rate, %": result.win_rate,
            "standard error, %": result.standard_error,
            "length-controlled win rate, %": controlled,
            "wins, draws, losses": f"{result.wins}, {result.draws}, {result.losses}",
        },
    )
    if print_json:
        typer.echo(json.dumps(figures))


def mtbench(  # noqa: PLR0913 - the options of a command are its interface
    *,
    questions: Annotated[Path, typer.Option(help="FastChat's question.jsonl.")],
    answers: Annotated[Path, typer.Option(help="FastChat's model_answer (quorum best-of-n --mt-bench).")],
    judge_prompts: Annotated[Path, typer.Option(help="FastChat's judge_prompts.jsonl.")],
    judge_url: JudgeUrl,
    judge_model: JudgeModel,
    out: Out,
    references: Annotated[
        Path | None, typer.Option(help="Reference answers, for math, reasoning and coding; the same format as answers.")
    ] = None,
    at_once: AtOnce = 8,
    print_json: PrintJson = False,
) -> None:
    """Ratings of both turns of MT-Bench, single answer grading."""
    asked = mt.read_questions(questions)
    known = {} if references is None else mt.read_answers(references)
    wanted = mt.rating_questions(asked, mt.read_answers(answers), known, read_fastchat_prompts(judge_prompts))
    said = _judge(wanted, judge_url, judge_model, out, at_once)
    found = mt.ratings(asked, said)
    _warn(found.failed, len(wanted), "turns")
    by_turn = {f"turn {turn}": mean for turn, mean in found.by_turn.items()}
    _show("MT-Bench", {"average": found.average, **by_turn, **found.by_category})
    if print_json:
        figures = {"eval": "mtbench", "judge": judge_model, "questions": len(asked), **asdict(found)}
        typer.echo(json.dumps(figures))


def _judge(
    asked: Sequence[Question], url: str, model: str, out: Path, at_once: int, *, weighted: bool = False
) -> list[Judgement]:
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise typer.BadParameter(f"--out: {out} cannot be a file")

    async def go() -> list[Judgement]:
        key = os.environ.get("QUORUM_JUDGE_API_KEY")
        async with Generator(url, api_key=key, max_in_flight=at_once, called="the judge") as generator:
            judge = Judge(generator, model, out, weighted=weighted)
            with Progress(console=console, disable=not console.is_terminal) as progress:
                shown = progress.add_task("judging", total=len(asked))
                return await judge.ask(asked, at_once=at_once, told=lambda _: progress.advance(shown))

    return asyncio.run(go())


def _warn(failed: int, total: int, what: str) -> None:
    if failed:
        console.print(f"warning: {failed} of {total} {what} have no judgement that counts, and are left out")


def _show(title: str, rows: dict[str, float | str | None]) -> None:
    table = Table(title=title)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in rows.items():
        table.add_row(name, "-" if value is None else value if isinstance(value, str) else f"{value:.2f}")
    console.print(table)
