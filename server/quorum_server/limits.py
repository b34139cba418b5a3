"""How much one request may ask for: counts and sizes, checked before the work they would cause.

    parsed JSON  --check_items-->  typed request  --check_text-->  tokeniser

Pure; knows nothing of HTTP or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quorum_client.errors import InvalidRequest, RequestTooLarge
from quorum_client.types import CompareRequest, Prompt, RankRequest, ScoreRequest

# Well above the fields of any request, and few enough that each can be named in an error.
_MAX_FIELDS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """What a body may be before it is typed. max_body_bytes: of all of it. max_items: inputs, candidates or pairs."""

    max_body_bytes: int
    max_items: int


def check_items(body: Any, max_items: int) -> None:
    """Refuse too many items, turns or fields while they are still plain JSON.

    Checking their shapes costs ten times as much, and naming a million unknown fields holds up every other request.

    Raises:
        RequestTooLarge: a list of the body, or a dialogue, is longer than `max_items`.
        InvalidRequest: an object has more fields than any of this API.
    """
    if not isinstance(body, dict):
        return
    _check_fields(body)
    for value in body.values():
        if not _is_one_text(value):
            _check_length(value, max_items, "items")
        for item in value if isinstance(value, list) else ():
            _check_turns(item, max_items)
            if isinstance(item, dict):
                _check_fields(item)
                for inner in item.values():
                    _check_turns(inner, max_items)


def _is_one_text(value: Any) -> bool:
    """Whether it is the token ids of one text, which other systems' bodies hold where ours hold a list of items."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], int)


def _check_turns(dialogue: Any, max_items: int) -> None:
    if isinstance(dialogue, list) and dialogue and isinstance(dialogue[0], dict):
        _check_length(dialogue, max_items, "turns in one dialogue")
        for turn in dialogue:
            if isinstance(turn, dict):
                _check_fields(turn)
                for parts in turn.values():
                    _check_length(parts, max_items, "parts in one message")


def _check_length(value: Any, max_items: int, what: str) -> None:
    if isinstance(value, list) and len(value) > max_items:
        raise RequestTooLarge(f"the request has {len(value)} {what}; this server takes at most {max_items} at once")


def _check_fields(value: dict[str, Any]) -> None:
    if len(value) > _MAX_FIELDS:
        raise InvalidRequest(f"an object of the request has {len(value)} fields; none of this API has so many")


def check_text(request: ScoreRequest | RankRequest | CompareRequest, max_chars: int) -> None:
    """Refuse more text than the tokeniser should be given at once.

    Raises:
        RequestTooLarge: more than `max_chars` characters.
    """
    num_chars = count_chars(request)
    if num_chars > max_chars:
        raise RequestTooLarge(
            f"the request has {num_chars} characters to tokenise, a shared prompt counted with each of its responses; "
            f"this server takes at most {max_chars} at once"
        )


def count_chars(request: ScoreRequest | RankRequest | CompareRequest) -> int:
    """Characters to tokenise: a prompt counts once for each response, since each is tokenised as one text."""
    if isinstance(request, ScoreRequest):
        return sum(
            _count_pairs(item.prompt, [text for text in (item.response, item.reference) if text is not None])
            + len(item.text or "")
            for item in request.inputs
        )
    if isinstance(request, RankRequest):
        references = [] if request.reference is None else [request.reference]
        return _count_pairs(request.prompt, [*request.candidates, *references])
    return sum(_count_pairs(pair.prompt, [pair.a, pair.b]) for pair in request.as_pairs())


def _count_pairs(prompt: Prompt | None, responses: list[str]) -> int:
    if prompt is None:
        return 0
    num_prompt = len(prompt) if isinstance(prompt, str) else sum(len(turn.content) for turn in prompt)
    return num_prompt * len(responses) + sum(map(len, responses))
