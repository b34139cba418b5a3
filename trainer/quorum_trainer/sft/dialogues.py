"""Dialogues to learn from, from files and from hub data sets.

    a row {prompt, response} or {messages}  --dialogue_of_row-->  Dialogue  --as_example-->  TRL's {prompt, completion}

Every error names file and line. Knows nothing of models.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from quorum_client.types import Message
from quorum_trainer.data.formats import RowRejected, check_text, read_messages
from quorum_trainer.data.pairs import DataError, Prompted
from quorum_trainer.data.read import numbered_rows
from quorum_trainer.data.split import split_held_out, take
from quorum_trainer.sft.config import Dialogues, SftConfig


class Dialogue(Prompted):
    """A prompt and the response that is learned."""

    response: str

    def turns(self) -> list[dict[str, str]]:
        """The prompt as messages."""
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return [turn.model_dump() for turn in self.prompt]

    def as_example(self) -> dict[str, list[dict[str, str]]]:
        """The row of TRL's conversational prompt-completion format."""
        return {"prompt": self.turns(), "completion": [{"role": "assistant", "content": self.response}]}


def dialogue_of_row(row: object) -> Dialogue:
    """The dialogue that a row holds; other fields are ignored.

    Raises:
        RowRejected: it holds none, and which field is at fault.
    """
    if not isinstance(row, Mapping):
        raise RowRejected("line", "must be an object")
    prompt: str | list[Message]
    if row.get("messages") is not None:
        *prompt, last = read_messages("messages", row["messages"])
        if not prompt or last.role != "assistant":
            raise RowRejected("messages", "must end with the assistant's, after a prompt")
        response: object = last.content
    else:
        if row.get("prompt") is None:
            raise RowRejected("prompt", "is missing")
        given = row["prompt"]
        prompt = given if isinstance(given, str) else read_messages("prompt", given)
        response = row.get("response")
    if not isinstance(response, str):
        raise RowRejected("response", "must be text")
    check_text("prompt", prompt if isinstance(prompt, str) else "".join(turn.content for turn in prompt))
    check_text("response", response)
    return Dialogue(prompt=prompt, response=response)


def read_dialogues(source: Dialogues) -> list[Dialogue]:
    """All dialogues of a source.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    if source.path is not None:
        path = Path(source.path)
        try:
            return _dialogues(numbered_rows(path), path.name, "line")
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path.name}: cannot be read: {error}") from error
    assert source.hub is not None
    from datasets import load_dataset  # here, because it takes seconds that files do without
    from datasets.exceptions import DatasetsError

    try:
        table = load_dataset(source.hub, split=source.split)
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(f"{source.hub}: cannot be loaded: {str(error).partition(chr(10))[0]}") from error
    return _dialogues(enumerate(table, start=1), source.hub, "row")


def _dialogues(rows: Iterable[tuple[int, object]], name: str, unit: str) -> list[Dialogue]:
    found = []
    for number, row in rows:
        try:
            found.append(dialogue_of_row(row))
        except RowRejected as error:
            raise DataError(f"{name}, {unit} {number}: {error}") from error
    if not found:
        raise DataError(f"{name}: holds no dialogues")
    return found


def load_dialogues(config: SftConfig) -> tuple[list[Dialogue], list[Dialogue]]:
    """(train, held out), split by prompt within each source; raises as `read_dialogues`."""
    train: list[Dialogue] = []
    held_out: list[Dialogue] = []
    for source in config.data:
        drawn = take(read_dialogues(source), source.max_examples, config.seed)
        own, kept = split_held_out(drawn, source.held_out, config.seed)
        train += own
        held_out += kept
    if not train:
        raise DataError("no dialogue is left to train on (data.held_out)")
    return train, held_out
