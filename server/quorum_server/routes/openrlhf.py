"""POST /get_reward, /openrlhf/get_reward: OpenRLHF's remote reward, the answer of its `serve_rm`.

    {"query", "prompts", "labels"}  -->  {"rewards", "scores", "extra_logs"}

`query` is prompt and response as its tokenizer wrote them, special tokens and all. Its clients ask five times, one
second apart, and then go on without a reward, so that a full queue and an engine that restarts are waited for here.
Matches OpenRLHF since 27 August 2025 (#1118), 0.8 to 0.11 (openrlhf/utils/agent.py, openrlhf/cli/serve_rm.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, model_validator

from quorum_client.modes import aggregate
from quorum_client.types import ScoreItem, ScoreResponse
from quorum_server.body import JsonRoute
from quorum_server.deadline import keep_deadline
from quorum_server.errors import ERROR_RESPONSES
from quorum_server.patience import Patience
from quorum_server.routes.dependencies import CallDep, RuntimeDep, get_service
from quorum_server.routes.translation import ForeignBody, RewardQuery, Scored, Scoring, activate


class PatientRoute(JsonRoute):
    """A route that waits. The client's own patience is 180 s an attempt."""

    patience_s = 150.0


router = APIRouter(route_class=PatientRoute, tags=["openrlhf"], responses=ERROR_RESPONSES)


class GetRewardRequest(ForeignBody):
    """prompts: what each query begins with; see `ScoreItem`. Labels are not used. All lists may be empty."""

    query: Annotated[list[str], Field(fail_fast=True)]
    prompts: Annotated[list[str], Field(fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _check_lengths(self) -> GetRewardRequest:
        if self.prompts is not None and len(self.prompts) != len(self.query):
            raise ValueError("query and prompts must be equally long")
        return self


class GetRewardQuery(RewardQuery):
    """The options of the address."""

    extra_logs: bool = Field(True, description="false for OpenRLHF 0.8.3 to 0.8.11, which break on them")


class GetRewardResponse(BaseModel):
    """rewards: by the mode. scores: those in 0..1, for dynamic filtering. extra_logs: name to a number a query."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]] | None = None


@router.post("/get_reward", response_model_exclude_none=True)
@router.post("/openrlhf/get_reward", response_model_exclude_none=True)
async def get_reward(
    request: Request,
    body: GetRewardRequest,
    runtime: RuntimeDep,
    call: CallDep,
    query: Annotated[GetRewardQuery, Query()],
    response: Response,
) -> GetRewardResponse:
    """Rewards of templated texts, for OpenRLHF's `--reward.remote_url` (`--remote_rm_url` before 0.10.4)."""
    if not body.query:  # sent to all servers but the first, where there are several
        return GetRewardResponse(rewards=[], scores=[])
    prompts: Sequence[str | None] = body.prompts or [None] * len(body.query)
    items = [ScoreItem(text=text, prompt=prompt) for text, prompt in zip(body.query, prompts, strict=True)]

    async def score() -> Scored:
        return await Scoring(get_service(runtime), runtime.registry, call, query, response).score(items)

    patience = Patience(runtime, request.state.arrived_s + PatientRoute.patience_s)
    async with keep_deadline(call.deadline_s):
        scored = await patience.wait_for(score)
    logs = _extra_logs(scored.answer) if query.extra_logs else None
    return GetRewardResponse(rewards=scored.scores, scores=activate(scored.scores, is_raw=False), extra_logs=logs)


def _extra_logs(answer: ScoreResponse) -> dict[str, list[float]]:
    """The mean and text_truncated (0 or 1), and std and lcb where there are members enough.

    lcb is at the answer's beta if that is its mode, else at 1.
    """
    logs = {
        "mean": [result.mean for result in answer.results if result.mean is not None],
        "text_truncated": [float(result.truncated) for result in answer.results],
    }
    spread = [result.std for result in answer.results if result.std is not None]
    if not spread:
        return logs
    logs["std"] = spread
    members = np.array([result.members for result in answer.results]).T
    logs["lcb"] = aggregate(members, "lcb", answer.beta if answer.mode == "lcb" else None).tolist()
    return logs
