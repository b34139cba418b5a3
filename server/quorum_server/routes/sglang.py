"""POST /sglang/classify, /sglang/v1/embeddings and GET /sglang/v1/models: an SGLang server started with --is-embedding.

    text | input_ids | conv  -->  embedding: the score, alone, without an activation

verl's built-in reward loop asks SGLang under /v1/embeddings and reads `data[-1].embedding[-1]`.
Matches SGLang as of 2026-08 (python/sglang/srt/entrypoints); see tests/contract/fixtures/sglang.json.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, model_validator

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
    Chat,
    ForeignBody,
    ScoringDep,
    Texts,
    TextsOrIds,
    TokenIds,
    UnavailableRoute,
    chat_item,
    text_items,
)

_ERRORS = {status: response for status, response in ERROR_RESPONSES.items() if status != 429}

router = APIRouter(prefix="/sglang", route_class=UnavailableRoute, tags=["sglang"], responses=_ERRORS)
listing = APIRouter(prefix="/sglang", tags=["sglang"])


class ClassifyRequest(ForeignBody):
    """Exactly one of templated text, token ids, or dialogues that end with the response; one, or a list of them."""

    text: Texts | None = None
    input_ids: TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)] | None = None
    conv: Chat | Annotated[list[Chat], Field(min_length=1, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _check_shape(self) -> ClassifyRequest:
        if sum(given is not None for given in (self.text, self.input_ids, self.conv)) != 1:
            raise ValueError("give exactly one of text, input_ids, conv")
        return self

    @property
    def is_list(self) -> bool:
        """Whether several are answered for, as a list."""
        if self.text is not None:
            return not isinstance(self.text, str)
        given = self.input_ids if self.input_ids is not None else self.conv
        return bool(given) and isinstance(given[0], list)  # type: ignore[index]

    def items(self) -> list[ScoreItem]:
        """What is to be scored. Raises: InvalidRequest: nothing, or a dialogue without a response."""
        if self.conv is None:
            return text_items(self.input_ids or [] if self.text is None else self.text)
        chats: list[Any] = self.conv if self.is_list else [self.conv]
        return [chat_item(chat, " ") for chat in chats]


class MetaInfo(BaseModel):
    """prompt_tokens: of this text. weight_version: the ensemble's."""

    id: str
    prompt_tokens: int
    weight_version: str


class Classified(BaseModel):
    """embedding: the score, alone."""

    embedding: list[float]
    meta_info: MetaInfo


class EmbeddingsRequest(ForeignBody):
    """Body of OpenAI's POST /v1/embeddings."""

    input: TextsOrIds
    model: str | None = None
    encoding_format: EncodingFormat | None = None


class Embedding(BaseModel):
    """embedding: the score, alone, as a number or as float32 in base64."""

    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str
    index: int


class EmbeddingsResponse(BaseModel):
    """Answer of POST /sglang/v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: TokenUsage


@router.post("/classify")
async def classify(body: ClassifyRequest, scoring: ScoringDep) -> Classified | list[Classified]:
    """Scores of templated texts, token ids or dialogues; one object for one of them, a list for a list."""
    scored = await scoring.score(body.items())
    results = [_classified(scored.answer, index, score) for index, score in enumerate(scored.scores)]
    return results if body.is_list else results[0]


def _classified(answer: ScoreResponse, index: int, score: float) -> Classified:
    meta = MetaInfo(
        id=f"{answer.id}-{index}",
        prompt_tokens=answer.results[index].num_tokens,
        weight_version=answer.ensemble.version,
    )
    return Classified(embedding=[score], meta_info=meta)


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingsRequest, scoring: ScoringDep) -> EmbeddingsResponse:
    """Scores of templated texts or token ids as vectors of one number."""
    scored = await scoring.score(text_items(body.input), model=body.model)
    vectors = [encode_vector(score, body.encoding_format) for score in scored.scores]
    data = [Embedding(embedding=vector, index=index) for index, vector in enumerate(vectors)]
    return EmbeddingsResponse(data=data, model=scored.answer.ensemble.name, usage=usage_of(scored.answer))


@listing.get("/v1/models")
async def list_models(registry: RegistryDep) -> ServedModels:
    """The loaded ensembles."""
    return list_served(registry)
