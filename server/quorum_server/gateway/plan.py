"""From a body to what is asked of the generator and of the ensemble, and from the generator's answer to candidates.

    ChatBody, CompletionBody  --plan_chat, plan_completion-->  Plan
    generator's body  --read_candidates-->  Candidates  --rank_request-->  RankRequest

Pure; sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from quorum_client.errors import GenerationInvalid, InvalidRequest
from quorum_client.types import Prompt, RankRequest
from quorum_server.errors import invalid_request
from quorum_server.gateway.bodies import ChatBody, CompletionBody, GatewayBody, QuorumOptions
from quorum_server.routes.translation import ChatMessage

_DIALOGUE: TypeAdapter[list[ChatMessage]] = TypeAdapter(list[ChatMessage])


@dataclass(frozen=True, slots=True)
class Plan:
    """One request of the gateway.

    path, body: what the generator is asked. is_chat: which of the two routes. prompt: what candidates are ranked under.
    num_candidates: N. num_choices: of these that are returned.
    """

    path: str
    body: dict[str, Any]
    is_chat: bool
    prompt: Prompt
    num_candidates: int
    num_choices: int
    options: QuorumOptions


def plan_chat(body: ChatBody, *, model: str, num_candidates: int) -> Plan:
    """Plan POST /v1/chat/completions.

    Args:
        body: as it came.
        model: the generator's.
        num_candidates: where the body does not say.

    Raises:
        InvalidRequest: a message is no text, or more choices are asked for than candidates.
    """
    try:
        dialogue = _DIALOGUE.validate_python(body.messages)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise invalid_request([{**one, "loc": ("messages", *one["loc"])} for one in details]) from None
    prompt = [message.as_message("\n") for message in dialogue]
    given = {"messages": body.messages}
    return _plan("/chat/completions", body, given, prompt, model, body.quorum.n or num_candidates)


def plan_completion(body: CompletionBody, *, model: str, num_candidates: int) -> Plan:
    """Plan POST /v1/completions; as `plan_chat`."""
    if None not in (body.best_of, body.quorum.n) and body.best_of != body.quorum.n:
        raise InvalidRequest("best_of and quorum.n say two numbers of candidates")
    count = body.quorum.n or body.best_of or num_candidates
    return _plan("/completions", body, {"prompt": body.prompt}, body.prompt, model, count)


def _plan(path: str, body: GatewayBody, given: dict[str, Any], prompt: Prompt, model: str, num_candidates: int) -> Plan:
    num_choices = body.n or 1
    if num_choices > num_candidates:
        raise InvalidRequest(f"n: {num_choices} choices cannot be the best of {num_candidates} candidates")
    sent = {**body.passed_on, **given, "model": model, "n": num_candidates, "stream": False}
    return Plan(path, sent, path.startswith("/chat"), prompt, num_candidates, num_choices, body.quorum)


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow")
    content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(BaseModel):
    model_config = ConfigDict(extra="allow")
    index: int
    message: _Message | None = None
    text: str | None = None


class _Reply(BaseModel):
    model_config = ConfigDict(extra="allow")
    choices: list[_Choice]


_REPLY: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a generator answered. reply: as it came, without its choices. choices: as they came, by index.

    texts: of each choice; None where it is no text that could be ranked (a tool call).
    """

    reply: dict[str, Any]
    choices: list[dict[str, Any]]
    texts: list[str | None]


def read_candidates(plan: Plan, body: str) -> Candidates:
    """Read a generator's answer.

    Raises:
        GenerationInvalid: it is none, or has another number of choices than were asked for.
    """
    try:
        reply = _REPLY.validate_json(body)
        typed = _Reply.model_validate(reply).choices
    except ValidationError as error:
        raise GenerationInvalid("the generator's answer is no completion in OpenAI's shape") from error
    order = sorted(range(len(typed)), key=lambda place: typed[place].index)
    if [typed[place].index for place in order] != list(range(plan.num_candidates)):
        raise GenerationInvalid(f"the generator gave {len(typed)} choices, and was asked for {plan.num_candidates}")
    choices = [reply["choices"][place] for place in order]
    rest = {name: value for name, value in reply.items() if name != "choices"}
    return Candidates(rest, choices, [_text_of(typed[place], is_chat=plan.is_chat) for place in order])


def _text_of(choice: _Choice, *, is_chat: bool) -> str | None:
    if not is_chat:
        return choice.text or ""
    if choice.message is None or choice.message.tool_calls:
        return None
    return choice.message.content or ""


def rank_request(plan: Plan, candidates: Candidates, ensemble: str | None) -> RankRequest:
    """What is asked of the ensemble: the candidates that are text.

    Raises:
        InvalidRequest: none is.
    """
    texts = [text for text in candidates.texts if text is not None]
    if not texts:
        raise InvalidRequest("no candidate is text: what the generator called tools with cannot be ranked")
    options = plan.options.model_dump(exclude={"n", "return_candidates", "ensemble"})
    return RankRequest(prompt=plan.prompt, candidates=texts, ensemble=ensemble, **options)
