"""What the servers said in a step, line by line as it arrived: what a run that was killed does not ask for again.

    completions, rewards, references  --Journal.add-->  journal/000012.jsonl  --open_step-->  the same, later

A file a step; a line is flushed to disk before it is used. A last line that was cut off is cut away.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

from quorum_client.errors import QuorumError
from quorum_trainer.ppo.samples import Draw, Reward

Kind = Literal["reward", "gold"]


class JournalCorrupt(QuorumError):
    """A line in the middle of a journal cannot be read, or is of another run's weights."""

    code = "journal_corrupt"


@dataclass(slots=True)
class Heard:
    """Of one step, by the prompt's place in it. adapters: sha256 of what its draws come from. seconds: of all calls."""

    draws: dict[int, list[Draw]] = field(default_factory=dict)
    adapters: dict[int, str] = field(default_factory=dict)
    references: dict[int, str] = field(default_factory=dict)
    rewards: dict[Kind, dict[int, list[Reward]]] = field(default_factory=lambda: {"reward": {}, "gold": {}})
    seconds: dict[str, float] = field(default_factory=dict)


class Journal:
    """One step's file. Made by `open_step`.

    heard: what it holds.
    """

    def __init__(self, path: Path, heard: Heard, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self.heard = heard

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def add_draws(self, place: int, prompt: int, draws: Sequence[Draw], *, adapter: str, elapsed_s: float) -> None:
        """A prompt's completions.

        Args:
            place: of the prompt in the step.
            prompt: its index in the prompts' file.
            draws: all of them.
            adapter: sha256 of the weights that they were drawn from.
            elapsed_s: of the call.
        """
        self._write("draws", place, elapsed_s, prompt=prompt, adapter=adapter, draws=[asdict(draw) for draw in draws])

    def add_reference(self, place: int, text: str, *, elapsed_s: float) -> None:
        """What a prompt's completions are compared with."""
        self._write("reference", place, elapsed_s, text=text)

    def add_rewards(self, kind: Kind, place: int, rewards: Sequence[Reward], *, elapsed_s: float) -> None:
        """What a prompt's completions are worth."""
        self._write(kind, place, elapsed_s, rewards=[asdict(reward) for reward in rewards])

    def _write(self, kind: str, place: int, elapsed_s: float, **values: Any) -> None:
        line = {"kind": kind, "place": place, "elapsed_s": round(elapsed_s, 6), **values}
        self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        _take(self.heard, line)


def open_step(folder: Path, step: int) -> Journal:
    """The journal of a step, with what an earlier process wrote into it.

    Args:
        folder: of the journals; made where it is not there.
        step: from 0.

    Raises:
        JournalCorrupt: see there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = journal_path(folder, step)
    heard, size = Heard(), 0
    if path.exists():
        for number, raw in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            if not raw.endswith(b"\n"):
                break  # killed while it was written
            try:
                _take(heard, json.loads(raw))
            except (ValueError, KeyError, TypeError) as error:
                raise JournalCorrupt(f"{path}, line {number}: {error}") from error
            size += len(raw)
    file = path.open("ab")
    file.truncate(size)
    return Journal(path, heard, file)


def journal_path(folder: Path, step: int) -> Path:
    """Where a step's journal lies."""
    return folder / f"{step:06d}.jsonl"


def _take(heard: Heard, line: dict[str, Any]) -> None:
    kind, place = line["kind"], line["place"]
    name = "sample" if kind == "draws" else kind
    heard.seconds[name] = heard.seconds.get(name, 0.0) + line["elapsed_s"]
    if kind == "draws":
        heard.adapters[place] = line["adapter"]
        heard.draws[place] = [
            Draw(tuple(own["token_ids"]), tuple(own["logprobs"]), own["ended"], own["text"]) for own in line["draws"]
        ]
    elif kind == "reference":
        heard.references[place] = line["text"]
    else:
        heard.rewards[kind][place] = [Reward(**own) for own in line["rewards"]]
