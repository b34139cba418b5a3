"""How much one request may ask for: counts and sizes, checked before the work they would cause.

    parsed JSON  --check_items-->  typed request  --check_text-->  tokeniser

Pure; knows nothing of HTTP or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quorum_client.errors import RequestTooLarge
from quorum_client.types import CompareRequest, Prompt, RankRequest, ScoreRequest


@dataclass(frozen=True, slots=True)
class Limits:
    """max_body_bytes: of the body. max_items: inputs, candidates or pairs. max_text_chars: see `count_chars`."""

    max_body_bytes: int
    max_items: int
    max_text_chars: int


def check_items(body: Any, max_items: int) -> None:
    """Refuse too many items while they are still plain JSON: checking each one's shape costs ten times as much.

    Raises:
        RequestTooLarge: a list of the body is longer than `max_items`.
    """
    if not isinstance(body, dict):
        return
    for value in body.values():
        if isinstance(value, list) and len(value) > max_items:
            raise RequestTooLarge(f"the request has {len(value)} items; this server takes at most {max_items} at once")


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
