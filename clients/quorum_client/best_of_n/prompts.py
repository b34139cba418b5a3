"""What is picked for: prompts, each with candidates of its own or without.

    JSON lines  --read_prompts-->  PromptTask

Checked line by line before anything is generated. Knows no server.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quorum_client._request import describe_invalid
from quorum_client.errors import InvalidRequest
from quorum_client.types import Message, Prompt


class BadPromptLine(InvalidRequest):
    """A line of the prompts' file that cannot be used; the message names its number."""

    code = "bad_line"


@dataclass(frozen=True, slots=True)
class PromptTask:
    """One prompt.

    Attributes:
        prompt_id: unlike all others of a run; a resumed run knows by it what is done.
        prompt: one user turn, or a dialogue.
        candidates: what is given to pick from; None where a generator is to write it.
        given: further fields of each candidate (`gold`, `generator`, …), kept in the record; as long as `candidates`.
        extra: further fields of the line, kept in the record.
        later: the user's further turns, each asked after the pick of the one before (MT-Bench).
    """

    prompt_id: str
    prompt: Prompt
    candidates: tuple[str, ...] | None = None
    given: tuple[Mapping[str, object], ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)
    later: tuple[str, ...] = ()

    def next_turn(self, picked: str) -> PromptTask | None:
        """The user's next turn, after this answer, or None; its id is the first's with /2, /3 and so on."""
        if not self.later:
            return None
        before = [Message(role="user", content=self.prompt)] if isinstance(self.prompt, str) else self.prompt
        told = [*before, Message(role="assistant", content=picked), Message(role="user", content=self.later[0])]
        first = self.prompt_id.rpartition("/")[0] if len(before) > 1 else self.prompt_id
        return PromptTask(f"{first}/{(len(told) + 1) // 2}", told, extra=self.extra, later=self.later[1:])

    def to_json(self) -> object:
        """The prompt as a record has it."""
        return self.prompt if isinstance(self.prompt, str) else [turn.model_dump() for turn in self.prompt]


_A = {"instruction": "an instruction", "turns": "turns"}


class _Candidate(BaseModel):
    model_config = ConfigDict(extra="allow")

    text: str


class _Line(BaseModel):
    """A prompt as ours, or as AlpacaEval's `instruction`, or as MT-Bench's first turn."""

    model_config = ConfigDict(extra="allow")

    prompt_id: str | int | None = None
    prompt: str | list[Message] | None = None
    instruction: str | None = None
    turns: list[str] | None = Field(None, min_length=1)
    question_id: str | int | None = None
    candidates: list[_Candidate | str] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_prompt(self) -> _Line:
        given = [name for name in ("prompt", "instruction", "turns") if getattr(self, name)]
        if not given:
            raise ValueError("needs a prompt (a text or messages), an instruction, or turns")
        if len(given) > 1:
            raise ValueError(f"has both a {given[0]} and {_A[given[1]]}")
        if self.turns and (self.candidates or not all(self.turns)):
            raise ValueError(
                "turns are non-empty texts, and have no candidates: the second depends on the first's answer"
            )
        return self


def read_prompts(path: Path) -> list[PromptTask]:
    """Read a file of JSON lines; .gz is gzip.

    A line has `prompt` (a text or messages) or AlpacaEval's `instruction`, and if wanted `prompt_id` (its number among
    the lines that are not blank if left out), `candidates` (texts, or objects with `text`), and further fields.

    Raises:
        BadPromptLine: a line cannot be used, or its prompt_id is another line's too.
        InvalidRequest: the file cannot be read, or has no prompts.
    """
    tasks: dict[str, PromptTask] = {}
    for number, raw in enumerate(_lines(path), start=1):
        if raw.strip():
            task = _task(raw, f"{path.name}, line {number}", len(tasks))
            if task.prompt_id in tasks:
                raise BadPromptLine(f"{path.name}, line {number}: prompt_id {task.prompt_id!r} is there already")
            tasks[task.prompt_id] = task
    if not tasks:
        raise InvalidRequest(f"{path.name}: holds no prompts")
    return list(tasks.values())


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            yield from stream
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidRequest(f"{path}: cannot be read: {error}") from error


def _task(raw: bytes, where: str, index: int) -> PromptTask:
    try:
        line = _Line.model_validate(json.loads(raw))
    except ValidationError as error:
        raise BadPromptLine(f"{where}: {describe_invalid(error)}") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise BadPromptLine(f"{where}: is not JSON: {error}") from error
    prompt = line.prompt or line.instruction or (line.turns[0] if line.turns else None)
    assert prompt is not None
    candidates = None
    given: tuple[Mapping[str, object], ...] = ()
    if line.candidates is not None:
        candidates = tuple(one if isinstance(one, str) else one.text for one in line.candidates)
        given = tuple({} if isinstance(one, str) else dict(one.model_extra or {}) for one in line.candidates)
    named = line.question_id if line.prompt_id is None else line.prompt_id
    extra = dict(line.model_extra or {}) | ({} if line.question_id is None else {"question_id": line.question_id})
    prompt_id = str(index if named is None else named)
    return PromptTask(prompt_id, prompt, candidates, given, extra, tuple(line.turns or ())[1:])
