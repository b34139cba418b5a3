"""One row of preference data, in any format that people have, as a pair.

    row  --pair_of_row-->  PreferencePair

| format | prompt | chosen, rejected |
|---|---|---|
| ours | text or messages | texts |
| explicit prompt, conversational | messages (or text) | one assistant message each |
| implicit prompt, standard | absent | whole texts with a common beginning |
| implicit prompt, conversational | absent (or text, which is not read) | whole dialogues with a common beginning |

The last three and the first with a text are TRL's preference formats; an implicit prompt is found by the rule of its
`trl.data_utils.extract_prompt`. What does not come apart into a prompt and one response a side is refused, never
guessed at. Pure: knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from quorum_client.types import Message, Role
from quorum_trainer.data.pairs import PreferencePair

_ROLES = get_args(Role)


class RowRejected(Exception):
    """A row is no pair.

    Args:
        field: which of its fields is at fault.
        reason: what is wrong with it; holds none of its text.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def pair_of_row(row: object, line: int | None = None) -> PreferencePair:
    """The pair that a row holds; fields other than prompt, chosen, rejected, margin and tie are ignored.

    Args:
        row: as read from JSON or from a data set.
        line: where it was read.

    Raises:
        RowRejected: a field is missing, of a wrong type, blank or no text, or the row has no prompt and two responses.
    """
    if not isinstance(row, Mapping):
        raise RowRejected("line", "must be an object")
    prompt, chosen, rejected = _take_apart(row)
    check_text("prompt", prompt if isinstance(prompt, str) else "".join(turn.content for turn in prompt))
    check_text("chosen", chosen)
    check_text("rejected", rejected)
    # In a table's columns what a row leaves out is null.
    tie = False if row.get("tie") is None else row["tie"]
    fields = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": row.get("margin"), "tie": tie}
    try:
        pair = PreferencePair.model_validate({**fields, "line": line})
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise RowRejected(str(first["loc"][0]), first["msg"]) from error
    if pair.tie and pair.margin:
        raise RowRejected("margin", "a tie has none")
    return pair


def _take_apart(row: Mapping[str, Any]) -> tuple[str | list[Message], str, str]:
    """Prompt and both responses."""
    chosen, rejected = _side(row, "chosen"), _side(row, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return (_prompt(row), chosen, rejected) if "prompt" in row else _split_texts(chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowRejected("rejected", "must be text where chosen is, and messages where chosen is")
    given = row.get("prompt")
    prompt: str | list[Message]
    if given is not None and (not isinstance(given, str) or len(chosen) == len(rejected) == 1):
        prompt = _prompt(row)
    else:
        start = _common_start(chosen, rejected)
        prompt, chosen, rejected = chosen[:start], chosen[start:], rejected[start:]
    return prompt, _response("chosen", chosen), _response("rejected", rejected)


def _side(row: Mapping[str, Any], field: str) -> str | list[Message]:
    if field not in row:
        raise RowRejected(field, "is missing")
    return row[field] if isinstance(row[field], str) else read_messages(field, row[field])


def _prompt(row: Mapping[str, Any]) -> str | list[Message]:
    return row["prompt"] if isinstance(row["prompt"], str) else read_messages("prompt", row["prompt"])


def read_messages(field: str, value: object) -> list[Message]:
    """A list of messages. Raises: RowRejected: it is none; names `field`."""
    if not isinstance(value, list):
        raise RowRejected(field, "must be text or a list of messages")
    if not value:
        raise RowRejected(field, "is an empty list of messages")
    return [_message(f"{field}.{index}", message) for index, message in enumerate(value)]


def _message(where: str, value: object) -> Message:
    if not isinstance(value, Mapping):
        raise RowRejected(where, "must be a message: an object with role and content")
    # A chat template may print what such a field holds (tool calls, reasoning), and a score would be of another text.
    # Columns of a table are filled up with nulls.
    if any(name not in ("role", "content") and held is not None for name, held in value.items()):
        raise RowRejected(where, "has fields other than role and content")
    role, content = value.get("role"), value.get("content")
    if role not in _ROLES:
        raise RowRejected(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise RowRejected(f"{where}.content", "must be text")
    return Message(role=role, content=content)


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    start = _common_start(chosen, rejected)
    # A space before the first difference belongs to the responses.
    if chosen[start] != rejected[start] and chosen[start - 1] == " ":
        start -= 1
    return chosen[:start], chosen[start:], rejected[start:]


def _common_start(chosen: Sequence[object], rejected: Sequence[object]) -> int:
    """Where the prompt ends: at the first difference, or before the last element where one side has none of its own.

    Raises:
        RowRejected: at once.
    """
    shorter = min(len(chosen), len(rejected))
    start = next((place for place in range(shorter) if chosen[place] != rejected[place]), shorter - 1)
    if start <= 0:
        raise RowRejected("prompt", "is missing, and chosen and rejected have no common beginning")
    return start


def _response(field: str, messages: list[Message]) -> str:
    if len(messages) != 1:
        raise RowRejected(field, f"must be one assistant message after the prompt, but is {len(messages)} messages")
    if messages[0].role != "assistant":
        raise RowRejected(field, "must end in an assistant message")
    return messages[0].content


def check_text(field: str, text: str) -> None:
    """Refuse what is no text. Raises: RowRejected: it is blank, or holds half a character."""
    if not text.strip():
        raise RowRejected(field, "is empty or blank")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowRejected(field, "holds a lone surrogate, which is no character") from error
