"""POST /vllm/classify, /pooling, /score, /rerank and GET /vllm/v1/models: the pooling API of a vLLM server.

    input | messages | pairs  -->  probs, data, score, relevance_score

As there, a score goes through the logistic function unless `use_activation` is false. verl's built-in reward loop asks
this way and reads `data[-1].probs[-1]` (its older releases say `activation`). What a client of vLLM would get wrong by
being ignored, another cut or another encoding than there is here, is refused.
Matches vLLM 0.32 (vllm/entrypoints/pooling) and the bodies of its docs; see tests/contract/fixtures/vllm.json.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Literal, TypedDict

from fastapi import APIRouter
from pydantic import AliasChoices, BaseModel, Field, model_validator

from quorum_client.errors import InvalidRequest
from quorum_client.types import ScoreItem, ScoreResponse
from quorum_server.errors import ERROR_RESPONSES
from quorum_server.routes.dependencies import RegistryDep
from quorum_server.routes.openai import (
    EncodingFormat,
    ServedModels,
    TokenUsage,
    encode_vector,
    list_served,
    usage_of,
)
from quorum_server.routes.translation import (
    LABEL,
    Chat,
    ForeignBody,
    Scored,
    Scoring,
    ScoringDep,
    Texts,
    TextsOrIds,
    UnavailableRoute,
    activate,
    chat_item,
    descending,
    text_items,
)

_ERRORS = {status: response for status, response in ERROR_RESPONSES.items() if status != 429}

router = APIRouter(prefix="/vllm", route_class=UnavailableRoute, tags=["vllm"], responses=_ERRORS)
listing = APIRouter(prefix="/vllm", tags=["vllm"])


class _PoolingBody(ForeignBody):
    """What all these bodies share. truncate_prompt_tokens: -1 is the ensemble's own length, the only one there is."""

    model: str | None = None
    use_activation: bool | None = None
    activation: bool | None = None
    truncate_prompt_tokens: Literal[-1] | None = None
    truncation_side: Literal["left", "right"] | None = None

    @property
    def is_raw(self) -> bool:
        """Whether scores are asked for as they are."""
        chosen = self.activation if self.use_activation is None else self.use_activation
        return chosen is False


class ClassifyRequest(_PoolingBody):
    """input: templated texts or token ids; or messages, which end with the response."""

    input: TextsOrIds | None = None
    messages: Chat | None = None

    @model_validator(mode="after")
    def _check_shape(self) -> ClassifyRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either input or messages")
        return self

    def items(self) -> list[ScoreItem]:
        """What is to be scored. Raises: InvalidRequest: nothing, or messages without a response."""
        return [chat_item(self.messages)] if self.messages is not None else text_items(self.input or [])


class PoolingRequest(ClassifyRequest):
    """task: a reward model has one number for a text, and none for its tokens."""

    task: Literal["classify"] | None = None
    encoding_format: EncodingFormat = "float"
    embed_dtype: Literal["float32"] = "float32"
    endianness: Literal["native", "little"] = "native"


class PairsRequest(_PoolingBody):
    """Prompts and responses, under any of the names that vLLM knows: one prompt for all, or one for each response."""

    queries: Texts = Field(validation_alias=AliasChoices("queries", "text_1", "data_1"))
    documents: Texts = Field(validation_alias=AliasChoices("documents", "items", "text_2", "data_2"))

    def items(self) -> list[ScoreItem]:
        """The pairs. Raises: InvalidRequest: none, or numbers of prompts and responses that do not go together."""
        prompts = [self.queries] if isinstance(self.queries, str) else self.queries
        responses = [self.documents] if isinstance(self.documents, str) else self.documents
        if not responses or len(prompts) not in (1, len(responses)):
            raise InvalidRequest("give one prompt for all responses, or as many prompts as responses; at least one")
        prompts = prompts if len(prompts) == len(responses) else list(prompts) * len(responses)
        return [ScoreItem(prompt=prompt, response=text) for prompt, text in zip(prompts, responses, strict=True)]


class Document(ForeignBody):
    """A document in Cohere's form; text only."""

    text: str
    multi_modal: None = None


class RerankRequest(_PoolingBody):
    """Candidates of one prompt. top_n: how many of the best to answer with; 0 for all."""

    query: str
    documents: Annotated[list[str | Document], Field(min_length=1, fail_fast=True)]
    top_n: int = Field(0, ge=0)

    def texts(self) -> list[str]:
        """The candidates."""
        return [one if isinstance(one, str) else one.text for one in self.documents]


class _Answer(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    usage: TokenUsage


class Classification(BaseModel):
    """probs: the score, alone."""

    index: int
    label: str = LABEL
    probs: list[float]
    num_classes: int = 1


class ClassifyResponse(_Answer):
    """Answer of POST /vllm/classify."""

    data: list[Classification]


class Pooled(BaseModel):
    """data: a vector of one number, or that as float32 in base64."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float] | str


class PoolingResponse(_Answer):
    """Answer of POST /vllm/pooling."""

    data: list[Pooled]


class PairScore(BaseModel):
    """The score of one pair."""

    index: int
    object: Literal["score"] = "score"
    score: float


class PairsResponse(_Answer):
    """Answer of POST /vllm/score."""

    data: list[PairScore]


class Reranked(BaseModel):
    """index: its place in the request."""

    index: int
    document: Document
    relevance_score: float


class RerankUsage(BaseModel):
    """Tokens submitted."""

    prompt_tokens: int
    total_tokens: int


class RerankResponse(BaseModel):
    """Answer of POST /vllm/rerank, the best first."""

    id: str
    model: str
    usage: RerankUsage
    results: list[Reranked]


@router.post("/classify")
async def classify(body: ClassifyRequest, scoring: ScoringDep) -> ClassifyResponse:
    """Scores of templated texts, token ids or a dialogue."""
    scored = await _score(scoring, body, body.items())
    shown = activate(scored.scores, body.is_raw)
    data = [Classification(index=index, probs=[score]) for index, score in enumerate(shown)]
    return ClassifyResponse(**_head("classify", scored.answer), data=data)


@router.post("/pooling")
async def pooling(body: PoolingRequest, scoring: ScoringDep) -> PoolingResponse:
    """As /vllm/classify, in another shape."""
    scored = await _score(scoring, body, body.items())
    shown = activate(scored.scores, body.is_raw)
    vectors = [encode_vector(score, body.encoding_format) for score in shown]
    data = [Pooled(index=index, data=vector) for index, vector in enumerate(vectors)]
    return PoolingResponse(**_head("pooling", scored.answer), data=data)


@router.post("/score")
@router.post("/v1/score")
async def score_pairs(body: PairsRequest, scoring: ScoringDep) -> PairsResponse:
    """Scores of (query, document) as (prompt, response)."""
    scored = await _score(scoring, body, body.items())
    shown = activate(scored.scores, body.is_raw)
    data = [PairScore(index=index, score=score) for index, score in enumerate(shown)]
    return PairsResponse(**_head("score", scored.answer), data=data)


@router.post("/rerank")
@router.post("/v1/rerank")
@router.post("/v2/rerank")
async def rerank(body: RerankRequest, scoring: ScoringDep) -> RerankResponse:
    """Order documents as responses to the query: Best-of-N."""
    texts = body.texts()
    scored = await _score(scoring, body, [ScoreItem(prompt=body.query, response=text) for text in texts])
    shown = activate(scored.scores, body.is_raw)
    order = descending(scored.scores)  # not of what is shown: the logistic function makes large ones equal
    results = [
        Reranked(index=index, document=Document(text=texts[index]), relevance_score=shown[index])
        for index in order[: body.top_n or None]
    ]
    answer = scored.answer
    tokens = answer.usage.prompt_tokens
    return RerankResponse(
        id=f"rerank-{answer.id}",
        model=answer.ensemble.name,
        usage=RerankUsage(prompt_tokens=tokens, total_tokens=tokens),
        results=results,
    )


@listing.get("/v1/models")
async def list_models(registry: RegistryDep) -> ServedModels:
    """The loaded ensembles."""
    return list_served(registry)


async def _score(scoring: Scoring, body: _PoolingBody, items: Sequence[ScoreItem]) -> Scored:
    return await scoring.score(items, model=body.model, truncate=body.truncation_side)


class _Head(TypedDict):
    id: str
    created: int
    model: str
    usage: TokenUsage


def _head(prefix: str, answer: ScoreResponse) -> _Head:
    return _Head(
        id=f"{prefix}-{answer.id}", created=int(time.time()), model=answer.ensemble.name, usage=usage_of(answer)
    )
