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
from quorum_client.best_of_n.outputs import alpaca_eval_outputs
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
    name: Annotated[str, typer.Option(help="What AlpacaEval's file calls the system.")] = "quorum-best-of-n",
    print_json: Annotated[bool, typer.Option("--json", help="End stdout with the summary as JSON.")] = False,
) -> None:
    """Pick the best of N candidates of every prompt.

    A run that stopped goes on where it was when it is started again with the same --out FILE. Keys are read from
    QUORUM_API_KEY and QUORUM_GENERATOR_API_KEY.
    """
    tasks = read_prompts(prompts)
    _check_usage(tasks, generator_url, out, alpaca_eval)
    sampling = SamplingOptions(n, temperature, top_p, max_tokens, stop=tuple(stop or ()))
    options: RewardKwargs = {"mode": mode, "beta": beta, "ensemble": ensemble}
    ranking = {name: value for name, value in {**options, "center": center}.items() if value is not None}
    summary = Summary(out=str(out))
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
            await _run(tasks, Picker(ranker, options, center, generator, asked), journal, at_once, summary)

    try:
        asyncio.run(go())
        records = _in_order(out, tasks)
        summary.unpicked = sum(record.picked is None for record in records)
        if alpaca_eval is not None:
            _write(alpaca_eval, json.dumps(alpaca_eval_outputs(records, name), indent=1, ensure_ascii=False))
    except OSError as error:
        raise FileFailed(f"{error.filename or 'reading or writing'}: {error.strerror or error}") from error
    finally:
        summary.seconds = round(time.monotonic() - started_s, 3)
        typer.echo(summary.sentence(), err=True)
        if print_json:
            typer.echo(json.dumps(asdict(summary)))


async def _run(tasks: list[PromptTask], picker: Picker, journal: Journal, at_once: int, summary: Summary) -> None:
    summary.kept = len(journal.done)
    rest = [task for task in tasks if task.prompt_id not in journal.done]
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        shown = progress.add_task("best-of-n", total=len(tasks), completed=summary.kept)
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


def _in_order(out: Path, tasks: list[PromptTask]) -> list[Record]:
    """The records of the file, in the order of the prompts."""
    lines = [json.loads(line) for line in out.read_bytes().splitlines()] if out.exists() else []
    by_prompt = {line["prompt_id"]: Record(line) for line in lines}
    return [by_prompt[task.prompt_id] for task in tasks if task.prompt_id in by_prompt]


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".partial-{path.name}")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def _check_usage(tasks: list[PromptTask], generator_url: str | None, out: Path, alpaca_eval: Path | None) -> None:
    without = sum(task.candidates is None for task in tasks)
    if without and generator_url is None:
        raise typer.BadParameter(f"{without} prompts have no candidates: give --generator-url")
    if not without and generator_url is not None:
        raise typer.BadParameter("every prompt has candidates: --generator-url would write none")
    for option, path in (("--out", out), ("--alpaca-eval", alpaca_eval)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise typer.BadParameter(f"{option}: {path} cannot be a file")
