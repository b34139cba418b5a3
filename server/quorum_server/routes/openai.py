"""What vLLM and SGLang share with OpenAI's API: the list of models, token counts, vectors as numbers or base64.

Knows no scoring.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from quorum_client.types import ScoreResponse
from quorum_server.registry import Registry
from quorum_server.routes.translation import as_base64

EncodingFormat = Literal["float", "base64"]


class ServedModel(BaseModel):
    """An ensemble in the list of models. root: what it was loaded from. max_model_len: tokens a text may have."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "quorum"
    root: str
    parent: str | None = None
    max_model_len: int


class ServedModels(BaseModel):
    """Answer of GET …/v1/models."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


class TokenUsage(BaseModel):
    """Tokens submitted; nothing is generated."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None
    completion_tokens_details: None = None


def list_served(registry: Registry) -> ServedModels:
    """The loaded ensembles."""
    return ServedModels(
        data=[
            ServedModel(
                id=ensemble.name,
                created=ensemble.created_s,
                root=ensemble.source,
                max_model_len=ensemble.manifest.max_length,
            )
            for ensemble in registry.list()
        ]
    )


def usage_of(answer: ScoreResponse) -> TokenUsage:
    """The token counts of an answer."""
    return TokenUsage(prompt_tokens=answer.usage.prompt_tokens, total_tokens=answer.usage.prompt_tokens)


def encode_vector(score: float, encoding: EncodingFormat | None) -> list[float] | str:
    """A score as a vector of one number, in the encoding that was asked for; numbers if None."""
    return as_base64(score) if encoding == "base64" else [score]
