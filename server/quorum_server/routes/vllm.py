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
from typing import Literal, TypedDict

from fastapi import APIRouter
from pydantic import BaseModel

from quorum_client.errors import InvalidRequest
from quorum_client.types import ScoreItem, ScoreResponse
from quorum_server.errors import ERROR_RESPONSES
from quorum_server.routes.dependencies import RegistryDep
from quorum_server.routes.openai import (
    ServedModels,
    TokenUsage,
    encode_vector,
    list_served,
    usage_of,
)
from quorum_server.routes.translation import LABEL, Scored, Scoring, ScoringDep, UnavailableRoute, activate, descending
from quorum_server.routes.vllm_bodies import (
    ClassifyRequest,
    Document,
    PairsRequest,
    PoolingBody,
    PoolingRequest,
    RerankRequest,
)

_ERRORS = {status: response for status, response in ERROR_RESPONSES.items() if status != 429}

router = APIRouter(prefix="/vllm", route_class=UnavailableRoute, tags=["vllm"], responses=_ERRORS)
listing = APIRouter(prefix="/vllm", tags=["vllm"])


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
    items = body.items()
    scored = await _score(scoring, body, items)
    shown = activate(scored.scores, body.is_raw)
    order = descending(scored.scores)  # not of what is shown: the logistic function makes large ones equal
    results = [
        Reranked(index=index, document=Document(text=items[index].response or ""), relevance_score=shown[index])
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


async def _score(scoring: Scoring, body: PoolingBody, items: Sequence[ScoreItem]) -> Scored:
    wanted, max_length = body.truncate_prompt_tokens, scoring.manifest(body.model).max_length
    if wanted is not None and 0 <= wanted < max_length:  # -1 is the ensemble's own
        raise InvalidRequest(
            f"truncate_prompt_tokens: the ensemble's length is {max_length}; a shorter one there is not"
        )
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
