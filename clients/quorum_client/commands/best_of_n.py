"""`quorum best-of-n`: prompts in, the best of N candidates out, with all candidates and their scores.

    --prompts FILE  --generator, /rank-->  Record  --Journal-->  --out FILE

Knows the options and what is shown.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from quorum_client._request import RewardKwargs
from quorum_client.async_client import AsyncClient
from quorum_client.best_of_n.journal import Journal, open_journal
from quorum_client.best_of_n.outputs import alpaca_eval_outputs, mt_bench_answers
from quorum_client.best_of_n.picker import DEFAULT_AT_ONCE, Picker
from quorum_client.best_of_n.picker import best_of_n as pick_all
from quorum_client.best_of_n.prompts import PromptTask, read_prompts
from quorum_client.best_of_n.record import Asked, Record
from quorum_client.commands.score import DEFAULT_URL, FileFailed
from quorum_client.generation import Generator, SamplingOptions
from quorum_client.modes import Mode
from quorum_client.types import Center

_DEADLINE_S = 600.0


@dataclass(slots=True)
class Summary:
    """What a run did. prompts: done by it. kept: done before. unpicked: of all, those without a pick."""

    prompts: int = 0
    kept: int = 0
    unpicked: int = 0
    candidates: int = 0
    seconds: float = 0.0
    out: str = ""

    def sentence(self) -> str:
        """One line for people."""
        kept = f", {self.kept} kept from before" if self.kept else ""
        return (
            f"{self.prompts} prompts, {self.candidates} candidates ranked{kept}, {self.unpicked} without a pick, "
            f"{self.seconds:.1f} s -> {self.out}"
        )


def best_of_n(  # noqa: PLR0913 - the options of a command are its interface
    *,
    prompts: Annotated[Path, typer.Option(help="JSON lines: prompt or instruction; prompt_id, candidates if wanted.")],
    out: Annotated[Path, typer.Option(help="Records, one line a prompt; an existing file is continued.")],
    url: Annotated[str, typer.Option(help="Quorum server.")] = DEFAULT_URL,
    generator_url: Annotated[
        str | None, typer.Option(help="Server with OpenAI's API, with its /v1; left out where candidates are given.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The generator's model. Default: the only one it serves.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Candidates of a prompt.")] = 16,
    temperature: Annotated[float, typer.Option(min=0.0)] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest candidate.")] = 512,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends a candidate; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Every prompt draws from a seed of its own that follows from it.")] = 0,
    mode: Annotated[Mode | None, typer.Option(help="How member scores become one. Default: the bundle's.")] = None,
    beta: Annotated[float | None, typer.Option(min=0.0, help="The mode's beta. Default: the bundle's.")] = None,
    center: Annotated[Center | None, typer.Option(help="Default: POST /rank's, group.")] = None,
    ensemble: Annotated[str | None, typer.Option(help="name or name@version")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Prompts under way at once.")] = DEFAULT_AT_ONCE,
    deadline: Annotated[float, typer.Option(help="Seconds for one call with its retries.")] = _DEADLINE_S,
    alpaca_eval: Annotated[
        Path | None, typer.Option(help="At the end, also write the picks as AlpacaEval's model_outputs.")
    ] = None,
    mt_bench: Annotated[
        Path | None, typer.Option(help="At the end, also write the picks as MT-Bench's model_answer (prompts: turns).")
    ] = None,
    name: Annotated[str, typer.Option(help="What these files call the system.")] = "quorum-best-of-n",
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with the summary as JSON.")] = False,
) -> None:
    """Pick the best of N candidates of every prompt.

    A run that stopped goes on where it was when it is started again with the same --out FILE. Keys are read from
    QUORUM_API_KEY and QUORUM_GENERATOR_API_KEY.
    """
    tasks = read_prompts(prompts)
    _check_usage(tasks, generator_url, {"--out": out, "--alpaca-eval": alpaca_eval, "--mt-bench": mt_bench})
    sampling = SamplingOptions(n, temperature, top_p, max_tokens, stop=tuple(stop or ()))
    options: RewardKwargs = {"mode": mode, "beta": beta, "ensemble": ensemble}
    ranking = {name: value for name, value in {**options, "center": center}.items() if value is not None}
    summary = Summary(out=str(out))
    records: list[Record] = []
    started_s = time.monotonic()

    async def go() -> None:
        async with AsyncExitStack() as stack:
            ranker = await stack.enter_async_context(
                AsyncClient(url, api_key=os.environ.get("QUORUM_API_KEY"), deadline_s=deadline)
            )
            generator, asked = None, None
            if generator_url is not None:
                key = os.environ.get("QUORUM_GENERATOR_API_KEY")
                generator = await stack.enter_async_context(
                    Generator(generator_url, api_key=key, deadline_s=deadline, max_in_flight=at_once)
                )
                asked = Asked(model or await _only_model(generator), sampling, seed)
            journal = stack.enter_context(open_journal(out, tasks, asked, ranking))
            await _run_turns(tasks, Picker(ranker, options, center, generator, asked), journal, at_once, summary)
            records.extend(_in_order(journal.records, tasks))

    try:
        asyncio.run(go())
        summary.unpicked = sum(record.picked is None for record in records)
        if alpaca_eval is not None:
            _write(alpaca_eval, json.dumps(alpaca_eval_outputs(records, name), indent=1, ensure_ascii=False))
        if mt_bench is not None:
            lines = mt_bench_answers(records, name, time.time())
            _write(mt_bench, "\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    except OSError as error:
        raise FileFailed(f"{error.filename or 'reading or writing'}: {error.strerror or error}") from error
    finally:
        summary.seconds = round(time.monotonic() - started_s, 3)
        typer.echo(summary.sentence(), err=True)
        if print_json:
            typer.echo(json.dumps(asdict(summary)))


async def _run_turns(tasks: list[PromptTask], picker: Picker, journal: Journal, at_once: int, summary: Summary) -> None:
    """All prompts; then, of dialogues, the second turn of all, and so on."""
    summary.kept = len(journal.records)
    while tasks:
        await _run(tasks, picker, journal, at_once, summary)
        tasks = _next_turns(journal.records, tasks) if any(task.later for task in tasks) else []


async def _run(tasks: list[PromptTask], picker: Picker, journal: Journal, at_once: int, summary: Summary) -> None:
    rest = [task for task in tasks if task.prompt_id not in journal.records]
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        shown = progress.add_task("best-of-n", total=len(tasks), completed=len(tasks) - len(rest))
        async for record in pick_all(rest, picker, at_once=at_once):
            journal.add(record)
            summary.prompts += 1
            summary.candidates += len(record.line["candidates"])
            progress.advance(shown)


async def _only_model(generator: Generator) -> str:
    names = await generator.models()
    if len(names) != 1:
        raise typer.BadParameter(f"--model: the generator serves {', '.join(names) or 'none'}; say which")
    return names[0]


def _next_turns(records: dict[str, Record], tasks: list[PromptTask]) -> list[PromptTask]:
    """The turns after these, of prompts that have a pick and say more."""
    told = [(task, records[task.prompt_id].picked) for task in tasks if task.prompt_id in records]
    following = [task.next_turn(picked) for task, picked in told if picked is not None]
    return [task for task in following if task is not None]


def _in_order(records: dict[str, Record], tasks: list[PromptTask]) -> list[Record]:
    """The records in the order of the prompts, each prompt's turns one after another."""
    found = []
    for task in tasks:
        turns = [task]
        while turns:
            found += [records[one.prompt_id] for one in turns if one.prompt_id in records]
            turns = _next_turns(records, turns)
    return found


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".partial-{path.name}")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def _check_usage(tasks: list[PromptTask], generator_url: str | None, files: dict[str, Path | None]) -> None:
    without = sum(task.candidates is None for task in tasks)
    if without and generator_url is None:
        raise typer.BadParameter(f"{without} prompts have no candidates: give --generator-url")
    if not without and generator_url is not None:
        raise typer.BadParameter("every prompt has candidates: --generator-url would write none")
    if files["--mt-bench"] is not None and not any(task.later for task in tasks):
        raise typer.BadParameter("--mt-bench: no prompt has several turns")
    for option, path in files.items():
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise typer.BadParameter(f"{option}: {path} cannot be a file")
