"""What is asked of a generator and what comes back.

    prompt + SamplingOptions  --Generator-->  Generation (n Completion)

Knows no HTTP and no particular server.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from quorum_client.errors import InvalidRequest

NUM_SEEDS = 2**31 - 2**16
"""Derived seeds lie below it: vLLM gives the i-th sample seed + i, and some servers keep seeds in 32 bits."""

_TAKEN = frozenset(
    "model messages prompt n temperature top_p max_tokens seed stop logprobs return_token_ids stream".split()
)


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How completions are drawn.

    Attributes:
        n: completions of the prompt; >= 1.
        temperature: >= 0; 0 is greedy, of which most servers give one completion only.
        top_p: nucleus mass, in (0, 1].
        max_tokens: longest completion, in tokens; None leaves it to the server.
        seed: makes the draw repeatable on one server and version; None is a new draw every time.
        stop: texts that end a completion and are left out of it.
        token_ids: ask for the ids of prompt and completions: an extension of vLLM, refused by servers without it.
        logprobs: ask for the log-probability of each sampled token.
        extra: further fields of the request body, sent as they are (`top_k`, `repetition_penalty`, …).

    Raises:
        InvalidRequest: a value is out of range, or `extra` says what has a field of its own.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = 512
    seed: int | None = None
    stop: tuple[str, ...] = ()
    token_ids: bool = False
    logprobs: bool = False
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks = {
            "n must be >= 1": self.n >= 1,
            "temperature must be finite and >= 0": math.isfinite(self.temperature) and self.temperature >= 0,
            "top_p must lie in (0, 1]": 0 < self.top_p <= 1,
            "max_tokens must be >= 1": self.max_tokens is None or self.max_tokens >= 1,
            "stop must be non-empty texts": not isinstance(self.stop, str) and all(self.stop),
        }
        for problem, is_fine in checks.items():
            if not is_fine:
                raise InvalidRequest(f"sampling: {problem}")
        taken = sorted(self.extra.keys() & _TAKEN)
        if taken:
            raise InvalidRequest(f"sampling: extra must not hold {', '.join(taken)}")


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion.

    Attributes:
        text: without special tokens and without the stop text.
        finish_reason: `stop` (an end-of-text token or a stop text), `length` (max_tokens), or the server's own word.
        token_ids: shape (R,), with the token that ended it; None where not asked for or not given.
        logprobs: shape (R,), natural logarithms, of the same tokens; None likewise. Of which distribution is the
            server's choice: vLLM's default is the model's own, before temperature and top_p.
    """

    text: str
    finish_reason: str | None
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens that a server counts for one request: of the prompt, once, and of all completions together."""

    prompt_tokens: int
    completion_tokens: int

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


@dataclass(frozen=True, slots=True)
class Generation:
    """The n completions of one prompt, in the server's order.

    Attributes:
        completions: exactly as many as were asked for.
        prompt_token_ids: the prompt as the server tokenised it; None where not asked for or not given.
        usage: None where the server does not count.
    """

    completions: tuple[Completion, ...]
    prompt_token_ids: tuple[int, ...] | None = None
    usage: TokenCounts | None = None


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed of its own for each prompt, the same in every run: in [0, NUM_SEEDS).

    Args:
        seed: of the run.
        names: what tells this prompt from others: its id, its turn.
    """
    # A length before each name: ("ab", "c") and ("a", "bc") are two prompts.
    text = "".join(f"{len(str(name))}:{name}" for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") % NUM_SEEDS
