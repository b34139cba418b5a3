"""`quorum eval`: a bundle's figures, or a judge's of answers.

    quorum eval BUNDLE …      evaluation/command.py
    quorum eval alpacaeval …  judging/command.py
    quorum eval mtbench …

A folder that is called like one of the two is written ./alpacaeval.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_BUNDLE = "bundle"
_COMMANDS = {
    _BUNDLE: (
        "quorum_trainer.evaluation.command",
        "evaluate",
        "A bundle: quorum eval BUNDLE … (the word may be left out).",
    ),
    "alpacaeval": (
        "quorum_trainer.judging.command",
        "alpacaeval",
        "Win rate of answers over a baseline's, by a judge.",
    ),
    "mtbench": ("quorum_trainer.judging.command", "mtbench", "Ratings of MT-Bench's two turns, by a judge."),
}


class EvalGroup(TyperGroup):
    """Takes what is none of its commands for a bundle, and imports what is called."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, (_, _, summary) in _COMMANDS.items():
            self.commands[name] = TyperCommand(name, help=summary)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`quorum eval X` is `quorum eval bundle X`."""
        if args and args[0] not in _COMMANDS and args[0] != "--help":
            args = [_BUNDLE, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the stand-in by the imported command."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        if name not in _COMMANDS:
            return name, stand_in, rest
        module, function, _ = _COMMANDS[name]
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(name=name)(getattr(import_module(module), function))
        return name, typer.main.get_command(single), rest


group = typer.Typer(
    cls=EvalGroup, name="eval", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@group.callback()
def describe() -> None:
    """Measure a bundle, or have answers judged."""
