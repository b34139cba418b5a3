"""`quorum bench WHAT`: benchmarks, each registered by the package that it measures.

    argv  --entry point of that name in `quorum.benchmarks`-->  benchmark

The same mechanism as `quorum` itself, one level down.
"""

from __future__ import annotations

from collections.abc import Mapping

import typer

from quorum_client.cli import CommandGroup


class BenchmarkGroup(CommandGroup):
    """Lists the registered benchmarks, and imports the one that is called."""

    entry_point_group = "quorum.benchmarks"
    summaries: Mapping[str, str] = {
        "score": "What K members cost to score, against one model, PEFT, vLLM and the matrix peak.",
        "prefix": "What it is worth to compute a shared prompt once.",
        "parity": "What a bundle's scores lose in another dtype, on real text.",
        "serve": "What the service costs, and what batching across requests is worth.",
        "swap": "What replacing a live ensemble costs those who score meanwhile.",
        "train": "What K members cost to train, against PEFT one after another.",
    }


bench = typer.Typer(cls=BenchmarkGroup, name="bench", no_args_is_help=True, pretty_exceptions_enable=False)


@bench.callback()
def describe() -> None:
    """Measure speed against what one would run instead; peers take turns in the same run."""
