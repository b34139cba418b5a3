"""`quorum inspect`: verify a bundle and show what is in it.

    folder | hub id | "default"  --read_bundle-->  tables, or one JSON object

All of its output; the work is done in `bundle`.
"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from quorum_model.bundle.inspect import describe, print_summary
from quorum_model.bundle.read import read_bundle, resolve_bundle


def inspect(
    bundle: Annotated[str, typer.Argument(help="A bundle's folder, a hub id, or 'default'.")],
    print_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Verify every file of a bundle and show what is in it."""
    verified = read_bundle(resolve_bundle(bundle))
    if print_json:
        typer.echo(json.dumps(describe(verified)))
    else:
        print_summary(verified, Console())
