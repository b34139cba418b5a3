"""POST /tei/predict, /tei/rerank and GET /tei/info: Text Embeddings Inference, with a model of one label.

    inputs | query, texts  -->  scores through the logistic function, or, with raw_scores, as they are

Errors are TEI's too: `{"error", "error_type"}`.
Matches TEI as of 2026-08 (router/src/http); see tests/contract/fixtures/tei.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from quorum_client.errors import InternalError, NotReady, Overloaded, QuorumError
from quorum_client.types import ScoreItem, Truncate
from quorum_server.body import JsonRoute
from quorum_server.errors import error_response, invalid_request
from quorum_server.routes.dependencies import RegistryDep
from quorum_server.routes.translation import (
    LABEL,
    ForeignBody,
    ScoringDep,
    activate,
    descending,
)

ErrorType = Literal["unhealthy", "backend", "overloaded", "validation", "tokenizer", "empty"]


class TeiError(BaseModel):
    """Every error answer of these routes."""

    error: str
    error_type: ErrorType


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": TeiError, "description": description}
    for status, description in {
        400: "The body is not JSON, or a text is empty",
        404: "No such ensemble",
        413: "The body, the number of texts or their length is beyond a limit",
        422: "The request cannot be served as it is",
        424: "The engine failed",
        429: "The queue is full; Retry-After says when to come back",
        503: "No engine can answer now",
        504: "The deadline passed",
    }.items()
}


class _TeiErrors(APIRoute):
    """A route whose errors are TEI's."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return _as_tei(invalid_request(error.errors()), request.state.request_id)
            except QuorumError as error:
                return _as_tei(error, request.state.request_id)

        return answer


class _TeiJsonRoute(_TeiErrors, JsonRoute):
    """The same, with a body."""


def _as_tei(error: QuorumError, request_id: str) -> Response:
    ours = error_response(error, request_id)
    status, error_type = _kind_of(error)
    theirs = TeiError(error=json.loads(bytes(ours.body))["error"]["message"], error_type=error_type)
    headers = {name: value for name, value in ours.headers.items() if name == "retry-after"}
    return Response(theirs.model_dump_json(), status, headers, media_type="application/json")


def _kind_of(error: QuorumError) -> tuple[int, ErrorType]:
    if error.code == "empty_text":
        return 400, "empty"
    if error.code == "invalid_unicode":
        return error.status, "tokenizer"
    if isinstance(error, Overloaded):
        return error.status, "overloaded"
    if isinstance(error, NotReady):
        return error.status, "unhealthy"
    if isinstance(error, InternalError) or error.code in ("non_finite_score", "scoring_failed"):
        return 424, "backend"
    return error.status, "backend" if error.status >= 500 else "validation"


router = APIRouter(prefix="/tei", route_class=_TeiJsonRoute, tags=["tei"], responses=_ERRORS)
information = APIRouter(
    prefix="/tei",
    route_class=_TeiErrors,
    tags=["tei"],
    responses={status: _ERRORS[status] for status in (404, 422, 503)},
)

_Sequence = Annotated[list[str], Field(min_length=1, max_length=2)]


class _TeiBody(ForeignBody):
    """truncate: false refuses an over-long text; left out, the ensemble decides whether it is cut."""

    raw_scores: bool = False
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None

    def cut(self, default: Truncate) -> Truncate:
        """Which end is cut. default: the ensemble's."""
        if self.truncate is False:
            return "error"
        if self.truncate is None and (default == "error" or self.truncation_direction is None):
            return default
        return "left" if self.truncation_direction in ("Left", "left") else "right"


class PredictRequest(_TeiBody):
    """inputs: a templated text; [prompt, response]; or a list of [text] and [prompt, response]."""

    inputs: str | _Sequence | Annotated[list[_Sequence], Field(min_length=1, fail_fast=True)]

    @property
    def is_batch(self) -> bool:
        """Whether several are answered for, as a list."""
        return not isinstance(self.inputs, str) and isinstance(self.inputs[0], list)

    def items(self) -> list[ScoreItem]:
        """What is to be scored."""
        if isinstance(self.inputs, str):
            return [ScoreItem(text=self.inputs)]
        sequences = self.inputs if self.is_batch else [self.inputs]
        return [
            ScoreItem(text=one[0]) if len(one) == 1 else ScoreItem(prompt=one[0], response=one[1]) for one in sequences
        ]


class RerankRequest(_TeiBody):
    """Candidates of one prompt."""

    query: str
    texts: Annotated[list[str], Field(min_length=1, fail_fast=True)]
    return_text: bool = False


class Prediction(BaseModel):
    """The score, under the model's one label."""

    score: float
    label: str = LABEL


class Rank(BaseModel):
    """index: its place in the request."""

    index: int
    text: str | None = None
    score: float


class Labels(BaseModel):
    """The model's one label."""

    id2label: dict[str, str] = {"0": LABEL}
    label2id: dict[str, int] = {LABEL: 0}


class ModelType(BaseModel):
    """A model of one label is a reranker there."""

    reranker: Labels = Labels()


class Info(BaseModel):
    """What is served, and the server's limits. model_sha: the ensemble's version."""

    model_id: str
    model_sha: str
    model_dtype: str
    served_model_name: str
    model_type: ModelType = ModelType()
    max_concurrent_requests: int = Field(description="texts of the greatest length that the queue holds")
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: None = None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: None = None
    docker_label: None = None


@router.post("/predict")
async def predict(body: PredictRequest, scoring: ScoringDep) -> list[Prediction] | list[list[Prediction]]:
    """Scores of templated texts and of [prompt, response] pairs."""
    scored = await scoring.score(body.items(), truncate=body.cut(scoring.manifest().truncation))
    predictions = [[Prediction(score=score)] for score in activate(scored.scores, body.raw_scores)]
    return predictions if body.is_batch else predictions[0]


@router.post("/rerank", response_model_exclude_none=True)
async def rerank(body: RerankRequest, scoring: ScoringDep) -> list[Rank]:
    """Order texts as responses to the query, the best first: Best-of-N."""
    items = [ScoreItem(prompt=body.query, response=text) for text in body.texts]
    scored = await scoring.score(items, truncate=body.cut(scoring.manifest().truncation))
    shown = activate(scored.scores, body.raw_scores)
    return [
        Rank(index=index, text=body.texts[index] if body.return_text else None, score=shown[index])
        for index in descending(scored.scores)
    ]


@information.get("/info")
async def info(
    request: Request, registry: RegistryDep, ensemble: Annotated[str | None, Query(min_length=1)] = None
) -> Info:
    """What is served here; with several ensembles, of the one named in the query."""
    state = request.app.state
    served = registry.get(ensemble)
    manifest = served.manifest
    return Info(
        model_id=served.source,
        model_sha=served.version,
        model_dtype=served.loaded.dtype,
        served_model_name=served.name,
        max_concurrent_requests=state.max_queued_tokens // manifest.max_length,
        max_input_length=manifest.max_length,
        max_batch_tokens=served.loaded.token_budget,
        max_client_batch_size=state.limits.max_items,
        auto_truncate=manifest.truncation != "error",
        tokenization_workers=state.tokenizer_threads,
        version=request.app.version,
    )
