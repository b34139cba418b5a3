"""What the routes of other systems share: options from the query, the one scoring call, numbers or an error.

    foreign body  --a route-->  items  --Scoring.score-->  Scored  --a route-->  answer

Those protocols have no place for the error of one item, so it fails the request; a number is never put in its place.
Fields that a protocol has and Quorum does not are ignored, as those clients expect. Knows no protocol.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from quorum_client.errors import InvalidRequest, Overloaded
from quorum_client.modes import Mode
from quorum_client.results import scores_of, sigmoid
from quorum_client.types import Center, Message, Role, ScoreItem, ScoreRequest, ScoreResponse, Truncate
from quorum_model.bundle.manifest import Manifest
from quorum_server.body import JsonRoute
from quorum_server.registry import Registry
from quorum_server.routes.dependencies import CallDep, RegistryDep, ServiceDep
from quorum_server.service import Call, ScoringService

ENSEMBLE_HEADER = "x-quorum-ensemble"
"""Answers name the version that gave them here: the protocols have no field for it."""

MODE_HEADER, BETA_HEADER = "x-quorum-mode", "x-quorum-beta"
"""And how members became the reward; no beta where the mode takes none, whatever was asked for."""

LABEL = "LABEL_0"
"""What Transformers, and so each of these systems, calls the one output of a reward model without names."""

Texts = str | Annotated[list[str], Field(fail_fast=True)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(fail_fast=True)]
TextsOrIds = Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)]


class ForeignBody(BaseModel):
    """A body of another system's protocol: fields that are not declared are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class RewardQuery(BaseModel):
    """How members become rewards, in the query of the address; the ensemble's defaults where left out.

    Misspelt names are refused: unlike the body, the address is written by a user of Quorum.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ensemble: str | None = Field(None, min_length=1, description="name or name@version; goes before the body's model")
    mode: Mode | None = None
    beta: float | None = Field(None, ge=0, allow_inf_nan=False)
    normalize: bool = Field(True, description="apply each member's calibration: (raw - mean) / scale")
    center: Center = "none"


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer none of whose results has an error. scores: the rewards."""

    answer: ScoreResponse
    scores: list[float]


@dataclass(frozen=True, slots=True)
class Scoring:
    """The one scoring call, for one foreign request. response: gets the headers that say what gave the answer."""

    service: ScoringService
    registry: Registry
    call: Call
    query: RewardQuery
    response: Response

    def manifest(self, model: str | None = None) -> Manifest:
        """Of the ensemble that scores. model: see `score`. Raises: EnsembleNotFound: there is none."""
        return self.registry.get(self._name(model)).manifest

    def _name(self, model: str | None) -> str | None:
        return self.query.ensemble or (model if model and "/" not in model else None)

    async def score(
        self, items: Sequence[ScoreItem], *, model: str | None = None, truncate: Truncate | None = None
    ) -> Scored:
        """Score items.

        Args:
            items: at least one.
            model: the body's; names the ensemble where the query does not. Names of ensembles have no slash: what has
                one is the client's own path or hub id, which trainers send to whatever serves, and is ignored.
            truncate: which end is cut; the bundle's if None.

        Raises:
            InvalidRequest: an item has no score, and which.
            QuorumError: as the service's.
        """
        request = ScoreRequest(
            inputs=list(items),
            ensemble=self._name(model),
            mode=self.query.mode,
            beta=self.query.beta,
            normalize=self.query.normalize,
            center=self.query.center,
            truncate=truncate,
        )
        answer = await self.service.score(request, self.call)
        scores = scores_of(answer.results)
        headers = self.response.headers
        headers[ENSEMBLE_HEADER] = f"{answer.ensemble.name}@{answer.ensemble.version}"
        headers[MODE_HEADER] = answer.mode
        if answer.beta is not None:
            headers[BETA_HEADER] = repr(answer.beta)
        return Scored(answer, scores)


def _get_scoring(
    service: ServiceDep,
    registry: RegistryDep,
    call: CallDep,
    query: Annotated[RewardQuery, Query()],
    response: Response,
) -> Scoring:
    return Scoring(service, registry, call, query, response)


ScoringDep = Annotated[Scoring, Depends(_get_scoring)]


class _Unavailable(Overloaded):
    status = 503


class UnavailableRoute(JsonRoute):
    """A route whose overload is a 503: clients of these protocols, verl's first, give up at once on any 4xx."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler of `JsonRoute`."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Overloaded as error:
                raise _Unavailable(error.message, retry_after_s=error.retry_after_s) from error

        return answer


_Empty = Annotated[list[Any], Field(max_length=0)] | None


class TextPart(ForeignBody):
    """A part of a message in OpenAI's form; text only."""

    text: str


Parts = Annotated[list[str | TextPart], Field(fail_fast=True)]


def join_parts(content: str | Sequence[str | TextPart], separator: str) -> str:
    """Text in one piece."""
    if isinstance(content, str):
        return content
    return separator.join(part if isinstance(part, str) else part.text for part in content)


class ChatMessage(ForeignBody):
    """A message in OpenAI's form. What would be more of its text, tool calls, is refused; other fields are ignored.

    A developer's turn is the system's, as vLLM has it for templates that do not know the word.
    """

    role: Role | Literal["developer"]
    content: str | Parts
    tool_calls: _Empty = None
    tools: _Empty = None
    reasoning: None = None
    reasoning_content: None = None

    def as_message(self, separator: str) -> Message:
        """The message with its text in one piece, which was in parts or not."""
        role: Role = "system" if self.role == "developer" else self.role
        return Message(role=role, content=join_parts(self.content, separator))


Chat = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]


def chat_item(chat: Sequence[ChatMessage], separator: str) -> ScoreItem:
    """A dialogue whose last turn is what is scored, in the ensemble's own template.

    Args:
        chat: the turns.
        separator: what the protocol puts between the parts of a turn's text.

    Raises:
        InvalidRequest: it does not end with a response to something.
    """
    messages = [message.as_message(separator) for message in chat]
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise InvalidRequest("a reward is of a response: the messages must end with the assistant's, after a prompt")
    return ScoreItem(prompt=messages[:-1], response=messages[-1].content)


def text_items(given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[ScoreItem]:
    """One text or list of token ids, or several, each already templated.

    Raises:
        InvalidRequest: there is none.
    """
    if isinstance(given, str):
        return [ScoreItem(text=given)]
    if given and isinstance(given[0], int):
        return [ScoreItem.model_validate({"token_ids": given})]
    if not given:
        raise InvalidRequest("there is nothing to score")
    return [ScoreItem.model_validate({"text" if isinstance(one, str) else "token_ids": one}) for one in given]


def activate(scores: Sequence[float], is_raw: bool) -> list[float]:
    """Scores as they are, or, as classifiers of one label give them, through the logistic function."""
    return list(scores) if is_raw else [sigmoid(score) for score in scores]


def descending(scores: Sequence[float]) -> list[int]:
    """Indices from the largest score to the smallest; ties keep their order."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def as_base64(score: float) -> str:
    """A vector of one number as little-endian float32 in base64: how OpenAI's clients ask for embeddings."""
    return base64.b64encode(np.array([score], dtype="<f4").tobytes()).decode()
