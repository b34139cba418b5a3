"""The `quorum` command: finds its subcommands by entry point and turns errors into exit codes.

    argv  --entry point of that name, imported only now-->  subcommand  --QuorumError-->  one line on stderr, exit 1

Every package registers its subcommands in the entry-point group `quorum.commands`, as a function with typer's
annotations or a `typer.Typer`. So this file knows none of the packages above it, and `quorum --help` imports none.

Exit codes: 0 done, 1 a `QuorumError`, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from quorum_client import __version__
from quorum_client.allocator import keep_freed_memory
from quorum_client.errors import MissingExtra, QuorumError

COMMAND_GROUP = "quorum.commands"

# What `quorum --help` says of a subcommand without importing it.
_SUMMARIES = {
    "score": "Score JSON lines against a server or a bundle.",
    "best-of-n": "Pick the best of N candidates of every prompt.",
    "serve": "Serve an ensemble over HTTP.",
    "train": "Train an ensemble by a config file.",
    "import": "Make a bundle of reward models that you have.",
    "ppo": "Train a policy on the rewards of a server.",
    "sft": "Train a causal model on dialogues: a policy to begin with.",
    "eval": "Measure a bundle (accuracy, calibration, uncertainty), or have answers judged.",
    "calibrate": "Fit temperature, mode and beta of a bundle.",
    "merge": "Average an ensemble's members into one model.",
    "bench": "Measure speed against what one would run instead.",
    "inspect": "Show what is in a bundle.",
}
_EXTRAS = {"quorum_model": "model", "quorum_server": "server", "quorum_trainer": "trainer"}


def _registered(group: str) -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=group)}


def _load(entry_point: EntryPoint) -> Any:
    """Import one subcommand as typer's own command object."""
    loaded = entry_point.load()
    if isinstance(loaded, typer.Typer):
        return typer.main.get_command(loaded)
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name=entry_point.name)(loaded)
    return typer.main.get_command(single)


def missing_extra(what: str, entry_point: EntryPoint, error: ModuleNotFoundError) -> MissingExtra | None:
    """The error that names the extra to install; None where `error` is a defect and not a missing package."""
    extra = _EXTRAS.get(entry_point.module.partition(".")[0])
    missing = (error.name or "").partition(".")[0]
    if extra is None or missing.startswith("quorum_"):
        return None
    return MissingExtra(f"{what} needs the {extra} extra: pip install 'quorum-rm[{extra}]' ({error})")


class CommandGroup(TyperGroup):
    """Lists the registered subcommands by stand-ins, and imports the one that is called.

    Typer's contexts and commands are typed as Any: the classes behind them are private to typer.
    """

    entry_point_group = COMMAND_GROUP
    summaries: Mapping[str, str] = _SUMMARIES

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name in sorted(_registered(self.entry_point_group)):
            self.commands[name] = TyperCommand(name, help=self.summaries.get(name))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the stand-in by the imported subcommand."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, _load(_registered(self.entry_point_group)[name]) if name and stand_in else stand_in, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; show what is wrong in one line."""
        try:
            return self._invoke_installed(ctx)
        except QuorumError as error:
            typer.echo(f"error: {error.code}: {error.message}", err=True)
            raise typer.Exit(1) from error

    def _invoke_installed(self, ctx: Any) -> Any:
        # Around the call and not only the import: subcommands import what is heavy when they run.
        name = ctx._protected_args[0] if ctx._protected_args else None
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            entry_point = _registered(self.entry_point_group).get(name or "")
            explained = entry_point and missing_extra(f"quorum {name}", entry_point, error)
            if not explained:
                raise
            raise explained from error


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"quorum {__version__}")
        raise typer.Exit


app = typer.Typer(cls=CommandGroup, name="quorum", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def quorum(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Reward-model ensembles as a service."""


def main() -> None:
    """Entry point of the `quorum` command."""
    # OpenMP's threads spin while they wait, which costs a busy machine most of its speed (ARCHITECTURE.md has the
    # figures). Said before any subcommand imports torch, and inherited by the engine's process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    app()


if __name__ == "__main__":
    main()
