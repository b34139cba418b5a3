"""Bodies of the gateway's routes: OpenAI's, with Quorum's options under `quorum`.

Whatever is not named here is the generator's and is passed on as it came: temperature, seed, stop, tools, logprobs, …
Knows nothing of how candidates are made or ranked.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from quorum_client.modes import Mode
from quorum_client.types import Center, Truncate

MAX_CANDIDATES = 1024


class QuorumOptions(BaseModel):
    """How candidates are drawn and ranked: `extra_body={"quorum": {...}}` of OpenAI's clients.

    n: candidates; the server's default if left out. The rest is as in POST /rank. return_candidates: show all of them
    with their scores, not only those that are returned.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int | None = Field(None, ge=1, le=MAX_CANDIDATES)
    ensemble: str | None = Field(None, min_length=1)
    mode: Mode | None = None
    beta: float | None = Field(None, ge=0, allow_inf_nan=False, strict=True)
    normalize: bool = Field(True, strict=True)
    center: Center | None = None
    reference: str | None = None
    truncate: Truncate | None = None
    return_candidates: bool = Field(False, strict=True)


class StreamOptions(BaseModel):
    """Of these only `include_usage` means something where the answer is whole before it is sent."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    include_usage: bool = False


class GatewayBody(BaseModel):
    """What both routes share.

    model: of the generator; or the name of an ensemble, which then ranks what the server's default generator model
    writes. n: choices that are returned, the best first. stream: send the answer as events, once it is there.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str | None = Field(None, min_length=1)
    n: int | None = Field(None, ge=1, le=MAX_CANDIDATES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    quorum: QuorumOptions = QuorumOptions()

    @property
    def passed_on(self) -> dict[str, Any]:
        """The fields that are the generator's."""
        return dict(self.model_extra or {})


class ChatBody(GatewayBody):
    """Body of POST /v1/chat/completions. messages: passed on as they are; ranked by their text."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)]


class CompletionBody(GatewayBody):
    """Body of POST /v1/completions. prompt: one text, ranked as a user's turn. best_of: as quorum.n."""

    prompt: str = Field(min_length=1)
    best_of: int | None = Field(None, ge=1, le=MAX_CANDIDATES)
