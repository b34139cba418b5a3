"""`quorum score`: JSON lines in, the same lines with their scores out.

    --in FILE  --score_lines-->  batches  --server or bundle-->  scores  --score_output-->  --out FILE

Knows the options and what is shown. A bundle is scored in this process by whatever registered itself under the
entry-point group `quorum.local`; this package never imports it by name.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from quorum_client._request import RewardKwargs, make_score_request
from quorum_client.cli import missing_extra
from quorum_client.client import DEFAULT_DEADLINE_S, Client
from quorum_client.commands.score_lines import batched, read_lines, score_in_order, scored_lines
from quorum_client.commands.score_output import OutputFile, Resumed, open_lines, resume
from quorum_client.commands.score_parts import Ask, OriginWatch, ScoredPart, score_parts
from quorum_client.errors import MissingExtra, QuorumError
from quorum_client.modes import Mode
from quorum_client.types import Center, ScoreRequest, ScoreResponse, Truncate

DEFAULT_URL = "http://127.0.0.1:8000"
LOCAL_GROUP = "quorum.local"
NUM_IN_FLIGHT = 4
"""Requests at a server at once: enough that it always has the next pass's work, few enough to be fair to others."""


class FileFailed(QuorumError):
    """A file cannot be read or written; the message has the system's reason."""

    code = "file_failed"


class LocalScorer(Protocol):
    """What the entry point `bundle` of `quorum.local` opens: a bundle in this process."""

    def score(self, request: ScoreRequest) -> ScoreResponse:
        """As POST /score."""
        ...


@dataclass(slots=True)
class Summary:
    """What a run did; `kept` lines were scored by an earlier one, `errors` items have no score."""

    items: int = 0
    kept: int = 0
    errors: int = 0
    seconds: float = 0.0
    items_per_s: float = 0.0
    ensembles: list[str] = field(default_factory=list)
    out: str | None = None

    def count(self, part: ScoredPart) -> None:
        """Add some results."""
        self.items += len(part.results)
        self.errors += sum(result.error is not None for result in part.results)
        ensemble = part.origin["ensemble"]
        name = f"{ensemble['name']}@{ensemble['version']}" if isinstance(ensemble, dict) else None
        if name is not None and name not in self.ensembles:
            self.ensembles.append(name)

    def finish(self, seconds: float) -> None:
        """Fix the rate."""
        self.seconds = round(seconds, 3)
        self.items_per_s = round(self.items / seconds, 2) if seconds > 0 else 0.0

    def sentence(self) -> str:
        """One line for people."""
        kept = f", {self.kept} kept from before" if self.kept else ""
        by = f" by {', '.join(self.ensembles)}" if self.ensembles else ""
        where = f" -> {self.out}" if self.out else ""
        return f"{self.items} items scored{by}{kept}, {self.errors} errors, {self.items_per_s:g} items/s{where}"


def score(  # noqa: PLR0913 - the options of a command are its interface
    *,
    url: Annotated[str | None, typer.Option(help=f"Server to ask. Default: {DEFAULT_URL}")] = None,
    bundle: Annotated[
        str | None, typer.Option(help="Score in this process: a bundle's folder, a hub id, or 'default'.")
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="How member scores become one. Default: the bundle's.")] = None,
    beta: Annotated[float | None, typer.Option(min=0.0, help="The mode's beta. Default: the bundle's.")] = None,
    center: Annotated[
        Center, typer.Option(help="group: relative to the lines of one prompt, which must follow one another.")
    ] = "none",
    ensemble: Annotated[str | None, typer.Option(help="name or name@version")] = None,
    normalize: Annotated[bool, typer.Option(help="Apply each member's calibration.")] = True,
    truncate: Annotated[Truncate | None, typer.Option(help="Which end of an over-long prompt is cut.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Precision; with --bundle.")] = None,
    in_name: Annotated[str, typer.Option("--in", metavar="FILE", help="JSON lines; - is stdin.")] = "-",
    out_name: Annotated[
        str, typer.Option("--out", metavar="FILE", help="An existing file is continued; - is stdout.")
    ] = "-",
    deadline: Annotated[
        float | None, typer.Option(help=f"Seconds for one request with its retries. Default: {DEFAULT_DEADLINE_S:g}")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Items per request.")] = 32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start --out anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End stdout with the summary as JSON; needs --out.")] = False,
) -> None:
    """Score JSON lines: each a (prompt, response), a text or token_ids; further keys are passed through.

    The scores of a line are written under its key "quorum". Files that end in .gz are gzip. A run that stopped goes
    on where it was when it is started again with the same --out FILE. A server's key is read from QUORUM_API_KEY.
    """
    source = None if in_name == "-" else Path(in_name)
    target = None if out_name == "-" else Path(out_name)
    _check_usage(url, bundle, dtype, deadline, source, target, as_json=as_json)
    options: RewardKwargs = {
        "mode": mode,
        "beta": beta,
        "ensemble": ensemble,
        "truncate": truncate,
        "normalize": normalize,
    }
    by_prompt = center == "group"
    asked_for = {"normalize": normalize, "truncate": truncate, **({"dtype": dtype or "auto"} if bundle else {})}
    watch = OriginWatch()
    with _file_errors(), open_lines(source, "rb") as stream:
        lines = read_lines(stream)
        resumed = resume(target, lines, by_prompt=by_prompt) if target and not overwrite else Resumed(target, lines)
        given = {"mode": mode, "beta": beta, "ensemble": ensemble, "center": center, **asked_for}
        resumed.check_asked({name: value for name, value in given.items() if value is not None})
        scorer = _bundle_scorer(bundle, dtype, options) if bundle else _url_scorer(url, deadline, options)
        with (
            scorer as (ask, num_in_flight),
            _summary(target, resumed.num_kept, as_json=as_json) as summary,
            _progress(source) as advance,
            OutputFile(
                target, append=not overwrite, keep_lines=resumed.num_kept if resumed.is_torn else None
            ) as output,
        ):
            advance(resumed.num_kept)
            batches = batched(resumed.rest, batch_size, by_prompt=by_prompt)
            score_batch = partial(score_parts, ask=ask, center=center, asked_for=asked_for)
            for batch, parts in score_in_order(batches, score_batch, num_in_flight):
                resumed.check(parts)
                watch.check(parts)
                output.write(scored_lines(batch, parts))
                for part in parts:
                    summary.count(part)
                advance(len(batch))


def _check_usage(
    url: str | None,
    bundle: str | None,
    dtype: str | None,
    deadline: float | None,
    source: Path | None,
    target: Path | None,
    *,
    as_json: bool,
) -> None:
    if url is not None and bundle is not None:
        raise typer.BadParameter("give either --url or --bundle")
    if dtype is not None and bundle is None:
        raise typer.BadParameter("--dtype goes with --bundle; a server has its own")
    if deadline is not None and bundle is not None:
        raise typer.BadParameter("--deadline goes with --url; a bundle in this process has none")
    if as_json and target is None:
        raise typer.BadParameter("--json needs --out FILE, since results go to stdout without it")
    if source is not None and (source.is_dir() or not source.exists()):
        raise typer.BadParameter(f"--in: no file {source}")
    if target is not None and (target.is_dir() or not target.parent.is_dir()):
        raise typer.BadParameter(f"--out: {target} cannot be a file")
    if source is not None and target is not None and source.resolve() == target.resolve():
        raise typer.BadParameter("--in and --out are the same file")


@contextmanager
def _url_scorer(url: str | None, deadline_s: float | None, options: RewardKwargs) -> Iterator[tuple[Ask, int]]:
    deadline_s = DEFAULT_DEADLINE_S if deadline_s is None else deadline_s
    with Client(url or DEFAULT_URL, api_key=os.environ.get("QUORUM_API_KEY"), deadline_s=deadline_s) as client:
        yield lambda items, center: client.score(items, center=center, **options), NUM_IN_FLIGHT


@contextmanager
def _bundle_scorer(bundle: str, dtype: str | None, options: RewardKwargs) -> Iterator[tuple[Ask, int]]:
    entry_point = next(iter(entry_points(group=LOCAL_GROUP, name="bundle")), None)
    if entry_point is None:
        raise MissingExtra("quorum score --bundle needs the model extra: pip install 'quorum-rm[model]'")
    try:
        scorer: LocalScorer = entry_point.load().open(bundle, dtype=dtype or "auto")
    except ModuleNotFoundError as error:
        raise missing_extra("quorum score --bundle", entry_point, error) or error from error
    yield lambda items, center: scorer.score(make_score_request(items, center, options)), 1


@contextmanager
def _file_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our output has gone: typer ends quietly
    except OSError as error:
        raise FileFailed(f"{error.filename or 'reading or writing'}: {error.strerror or error}") from error


@contextmanager
def _progress(source: Path | None) -> Iterator[Callable[[int], None]]:
    """Progress on stderr where that is a terminal; yields what to call with newly finished items."""
    is_shown = _is_watched()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown) as progress:
        task = progress.add_task("score", total=_num_lines(source) if is_shown else None)
        yield lambda num_items: progress.advance(task, num_items)


def _is_watched() -> bool:
    return sys.stderr.isatty()


def _num_lines(path: Path | None) -> int | None:
    if path is None or not path.is_file():
        return None  # a pipe can be read once only, and that is for scoring
    try:
        with open_lines(path, "rb") as file:
            return sum(1 for line in file if line.strip())
    except (EOFError, OSError, zlib.error):
        return None  # damaged gzip: reported when scoring gets there


@contextmanager
def _summary(target: Path | None, num_kept: int, *, as_json: bool) -> Iterator[Summary]:
    """Show the summary however the run ends: what has been written is worth knowing then above all."""
    summary = Summary(kept=num_kept, out=None if target is None else str(target))
    started_s = time.monotonic()
    try:
        yield summary
    finally:
        summary.finish(time.monotonic() - started_s)
        typer.echo(summary.sentence(), err=True)
        if as_json:
            typer.echo(json.dumps(asdict(summary)))
