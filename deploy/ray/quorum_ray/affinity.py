"""Which requests belong together: those of one prompt, whatever protocol they come in. Pure.

body  --affinity_key-->  key, equal for candidates of one prompt
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_PLACES = ("prompt", "prompts", "messages", "inputs", "input", "pairs", "query", "text", "texts", "data", "conv")
"""Where a body has its prompt, in our own and in the other systems' shapes; the first one that is there."""
_SHOWN_CHARS = 256
"""Of text that is templated already, so much tells the prompt: where it ends is not known."""


def affinity_key(body: bytes) -> str:
    """A request's key: a hash of its first prompt; empty for a body that has none, which may go anywhere.

    Requests of several prompts go where their first one does: a request is never divided.
    """
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    prompt = _first_prompt(parsed)
    if prompt is None:
        return ""
    text = prompt[:_SHOWN_CHARS] if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _first_prompt(value: Any) -> Any:
    """The prompt in a body or an item: a text, or messages."""
    while True:
        if isinstance(value, list) and value:
            if _is_messages(value):
                return value
            value = value[0]
        elif isinstance(value, Mapping):
            place = next((place for place in _PLACES if value.get(place)), None)
            if place is None:
                return None
            value = value[place]
        else:
            return value if isinstance(value, str) and value else None


def _is_messages(value: list[Any]) -> bool:
    return all(isinstance(one, Mapping) and "role" in one for one in value)
