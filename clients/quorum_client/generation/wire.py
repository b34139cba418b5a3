"""OpenAI's completion routes as pure functions: request bodies out, checked generations in.

    prompt, SamplingOptions  --chat_body, completion_body-->  JSON object
    body of a 2xx answer  --read_chat, read_completion, read_models-->  Generation, names | GenerationInvalid

What vLLM adds (`return_token_ids`) is sent only where it is asked for. Sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from pydantic import BaseModel, Field, ValidationError

from quorum_client._request import describe_invalid
from quorum_client.errors import GenerationInvalid, InvalidRequest
from quorum_client.generation.types import Completion, Generation, SamplingOptions, TokenCounts
from quorum_client.types import Message, ResponseModel

ChatPrompt = str | Sequence[Message] | Sequence[Mapping[str, object]]
"""A dialogue that the server puts into its chat template; a string is one user turn."""
TextPrompt = str | Sequence[int]
"""Text, or token ids, that the completion follows as they are."""


def chat_body(prompt: ChatPrompt, model: str, sampling: SamplingOptions) -> dict[str, object]:
    """Body of POST /chat/completions. Raises: InvalidRequest: a prompt of no messages."""
    if not prompt:
        raise InvalidRequest("prompt: holds nothing")
    if isinstance(prompt, str):
        messages: list[object] = [{"role": "user", "content": prompt}]
    else:
        messages = [turn.model_dump() if isinstance(turn, Message) else dict(turn) for turn in prompt]
    return {"messages": messages, **_common(model, sampling), **({"logprobs": True} if sampling.logprobs else {})}


def completion_body(prompt: TextPrompt, model: str, sampling: SamplingOptions) -> dict[str, object]:
    """Body of POST /completions. Raises: InvalidRequest: a prompt of no tokens."""
    if not prompt:
        raise InvalidRequest("prompt: holds nothing")
    # 1, not 0: the legacy route counts alternatives, and some servers take 0 for none at all.
    given: dict[str, object] = {"prompt": prompt if isinstance(prompt, str) else list(prompt)}
    return {**given, **_common(model, sampling), **({"logprobs": 1} if sampling.logprobs else {})}


def _common(model: str, sampling: SamplingOptions) -> dict[str, object]:
    optional: dict[str, object] = {}
    if sampling.max_tokens is not None:
        optional["max_tokens"] = sampling.max_tokens
    if sampling.seed is not None:
        optional["seed"] = sampling.seed
    if sampling.stop:
        optional["stop"] = list(sampling.stop)
    if sampling.token_ids:
        optional["return_token_ids"] = True
    fixed = {"model": model, "n": sampling.n, "temperature": sampling.temperature, "top_p": sampling.top_p}
    return {**fixed, **optional, **sampling.extra}


class _Usage(ResponseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(0, ge=0)


class _ChatMessage(ResponseModel):
    content: str | None = None
    tool_calls: list[object] | None = None


class _ChatToken(ResponseModel):
    logprob: float


class _ChatLogprobs(ResponseModel):
    content: list[_ChatToken] | None = None


class _Choice(ResponseModel):
    index: int
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _ChatChoice(_Choice):
    message: _ChatMessage
    logprobs: _ChatLogprobs | None = None

    def completion(self) -> Completion:
        if self.message.tool_calls:
            raise GenerationInvalid("a choice of the generator is a tool call, which is no text")
        tokens = self.logprobs.content if self.logprobs is not None else None
        logprobs = None if tokens is None else [token.logprob for token in tokens]
        return _completion(self, self.message.content or "", logprobs)


class _TextLogprobs(ResponseModel):
    token_logprobs: list[float] | None = None


class _TextChoice(_Choice):
    text: str
    prompt_token_ids: list[int] | None = None
    logprobs: _TextLogprobs | None = None

    def completion(self) -> Completion:
        return _completion(self, self.text, self.logprobs.token_logprobs if self.logprobs is not None else None)


class _ChatReply(ResponseModel):
    choices: list[_ChatChoice]
    prompt_token_ids: list[int] | None = None
    usage: _Usage | None = None


class _TextReply(ResponseModel):
    choices: list[_TextChoice]
    usage: _Usage | None = None


class _Model(ResponseModel):
    id: str


class _ModelsReply(ResponseModel):
    data: list[_Model]


class _AnyChoice(Protocol):
    @property
    def index(self) -> int: ...
    def completion(self) -> Completion: ...


ReplyT = TypeVar("ReplyT", bound=BaseModel)


def read_chat(body: str, n: int) -> Generation:
    """The answer of POST /chat/completions.

    Raises:
        GenerationInvalid: it is none, or has another number of choices than `n`.
    """
    reply = _parse(_ChatReply, body)
    return Generation(_completions(reply.choices, n), _ids(reply.prompt_token_ids), _counts(reply.usage))


def read_completion(body: str, n: int) -> Generation:
    """The answer of POST /completions; raises as `read_chat`."""
    reply = _parse(_TextReply, body)
    completions = _completions(reply.choices, n)
    return Generation(completions, _ids(reply.choices[0].prompt_token_ids), _counts(reply.usage))


def read_models(body: str) -> list[str]:
    """The answer of GET /models. Raises: GenerationInvalid: it is none."""
    return [model.id for model in _parse(_ModelsReply, body).data]


def _parse(model: type[ReplyT], body: str) -> ReplyT:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise GenerationInvalid(f"the generator's answer cannot be read: {describe_invalid(error)}") from error


def _completions(choices: Sequence[_AnyChoice], n: int) -> tuple[Completion, ...]:
    ordered = sorted(choices, key=lambda choice: choice.index)
    if [choice.index for choice in ordered] != list(range(n)):
        raise GenerationInvalid(f"the generator gave {len(choices)} choices, and was asked for {n}")
    return tuple(choice.completion() for choice in ordered)


def _completion(choice: _Choice, text: str, logprobs: list[float] | None) -> Completion:
    ids = choice.token_ids
    if ids is not None and logprobs is not None and len(ids) != len(logprobs):
        raise GenerationInvalid(f"the generator gave {len(ids)} token ids and {len(logprobs)} log-probabilities")
    return Completion(text, choice.finish_reason, _ids(ids), None if logprobs is None else tuple(logprobs))


def _ids(ids: list[int] | None) -> tuple[int, ...] | None:
    return None if ids is None else tuple(ids)


def _counts(usage: _Usage | None) -> TokenCounts | None:
    return None if usage is None else TokenCounts(usage.prompt_tokens, usage.completion_tokens)


def error_message(body: object) -> str | None:
    """The message of an error body, as OpenAI (`{"error": {…}}` unwrapped) or FastAPI (`detail`) write it."""
    message = body.get("message", body.get("detail")) if isinstance(body, dict) else None
    return message if isinstance(message, str) else None
