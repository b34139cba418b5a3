"""How the time of a token under one member moves with the number of members, and with the number of sequences.

    Task, "members" | "sequences"  --run_sweep-->  points  --plot_sweep-->  PNG

The engine alone, in turns with itself. What two sizes both score must come out the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quorum_client.errors import InvalidRequest, MissingExtra
from quorum_model.benchmark.agreement import check_agreement
from quorum_model.benchmark.contest import Scores, Task
from quorum_model.benchmark.score_result import nanoseconds_per_token_member
from quorum_model.benchmark.turns import Prepare, take_turns
from quorum_model.member_scorer import MemberScorer

Sweep = Literal["members", "sequences"]

MEMBERS = (1, 2, 4, 8, 16)
SEQUENCES = (10, 100, 1_000, 10_000)


def run_sweep(task: Task, sweep: Sweep, rounds: int, folder: Path, on_turn: Callable[[str], None]) -> dict[str, Any]:
    """Time the engine at every size, and check that sizes agree.

    Args:
        task: its members, or its sequences, are what varies.
        sweep: which.
        rounds: timed ones.
        folder: an empty one, for bundles.
        on_turn: told of each turn.

    Returns:
        JSON-ready: `sweep`, `points` in ascending order, `largest_difference`.

    Raises:
        ContestantsDisagree: one size gives other scores than another.
    """
    tasks = _tasks(task, sweep)
    loaded: dict[int, MemberScorer] = {}
    for own in tasks:
        if own.members not in loaded:
            loaded[own.members] = own.load(own.draw().write(folder / f"members-{own.members}"))
    scores: dict[str, Scores] = {}

    def prepare(name: str, own: Task) -> Callable[[], object]:
        def work() -> None:
            scores[name] = loaded[own.members].score(own.sequences).raw

        return work

    names = {f"{own.members} members, {len(own.sequences)} sequences": own for own in tasks}
    prepares: dict[str, Prepare] = {name: partial(prepare, name, own) for name, own in names.items()}
    turns = take_turns(prepares, rounds, lambda name, number: on_turn(f"round {number}: {name}"))
    points = [
        {
            "members": own.members,
            "sequences": len(own.sequences),
            "tokens": own.num_tokens,
            "seconds": turns.seconds[name],
            "nanoseconds_per_token_member": nanoseconds_per_token_member(
                turns.seconds[name], own.num_tokens, own.members
            ),
        }
        for name, own in names.items()
    ]
    return {"sweep": sweep, "points": points, "largest_difference": _differences(list(scores.values()), task.dtype)}


def _tasks(task: Task, sweep: Sweep) -> list[Task]:
    if sweep == "members":
        return [replace(task, members=members) for members in MEMBERS]
    available = len(task.sequences)
    counts = [count for count in SEQUENCES if count < available] + [available]
    return [replace(task, sequences=task.sequences[:count]) for count in counts]


def _differences(scores: list[Scores], dtype: str) -> float:
    """The smaller sizes against the largest, in what both scored: the first members, the first sequences."""
    largest = max(scores, key=lambda own: own.size)
    worst = 0.0
    for own in scores:
        pair = {"all": largest[: own.shape[0], : own.shape[1]], "part": own}
        worst = max(worst, check_agreement(pair, dict.fromkeys(pair, dtype), "all")["part"])
    return worst


def check_plotting(path: Path) -> None:
    """Find out before hours of measuring that the plot cannot be drawn.

    Raises:
        MissingExtra: matplotlib is not installed.
        InvalidRequest: no such folder.
    """
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as error:
        raise MissingExtra(f"--plot needs the trainer extra: pip install 'quorum-rm[trainer]' ({error})") from error
    if not path.absolute().parent.is_dir():
        raise InvalidRequest(f"no such folder: {path.absolute().parent}")


def plot_sweep(result: dict[str, Any], path: Path) -> None:
    """Draw the time of a token under one member over what was swept.

    Args:
        result: of `quorum bench score --sweep`.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    points = result["points"]
    sizes = [point[result["sweep"]] for point in points]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    rates = np.array(
        [[own / (point["tokens"] * point["members"]) * 1e9 for own in point["seconds"]] for point in points]
    )
    axes.fill_between(sizes, rates.min(axis=1), rates.max(axis=1), color="#0072B2", alpha=0.2, label="all rounds")
    axes.plot(sizes, [point["nanoseconds_per_token_member"] for point in points], "o-", color="#0072B2", label="median")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(result["sweep"])
    axes.set_ylabel("ns a token and member")
    axes.set_title(f"{result['kind']}, adapters on {result['layers']}, {result['dtype']}, {result['device']}")
    axes.legend()
    figure.savefig(path, dpi=120)
