"""The gateway's one call: candidates from the generator, their order from the ensemble.

    Plan  --Generator.call-->  Candidates  --ScoringService.rank-->  RankResponse  --make_answer-->  answer

One deadline holds for both; a client that leaves cancels both. Knows nothing of HTTP on this side.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from quorum_client.errors import DeadlineExceeded, GeneratorError, Overloaded, QuorumError
from quorum_client.generation import Generator
from quorum_server.deadline import keep_deadline
from quorum_server.events import Observer
from quorum_server.gateway.answer import make_answer
from quorum_server.gateway.bodies import ChatBody, CompletionBody
from quorum_server.gateway.plan import Candidates, Plan, plan_chat, plan_completion, rank_request, read_candidates
from quorum_server.registry import Registry
from quorum_server.service import Call, ScoringService

_MODELS_DEADLINE_S = 2.0
_WAITING_PER_TURN = 4
"""Requests that may wait for a turn at the generator, for each that has one."""
_RETRY_AFTER_S = 5.0


class Gateway:
    """Answers of a generator, the best of several.

    Args:
        generator: where candidates come from.
        service: ranks them.
        registry: the loaded ensembles, which a request's `model` may name.
        model: the generator's, where a request names none; its only one if None.
        num_candidates: where a request does not say.
        max_in_flight: requests at the generator at once; four times as many wait, further ones are refused.
        observer: is told of what was generated.
    """

    def __init__(
        self,
        generator: Generator,
        service: ScoringService,
        registry: Registry,
        *,
        model: str | None,
        num_candidates: int,
        max_in_flight: int,
        observer: Observer | None = None,
    ) -> None:
        self._generator = generator
        self._service = service
        self._registry = registry
        self._model = model
        self._num_candidates = num_candidates
        self._most = (1 + _WAITING_PER_TURN) * max_in_flight
        self._num_open = 0
        self._observer = observer or Observer()

    async def answer(self, body: ChatBody | CompletionBody, call: Call) -> dict[str, Any]:
        """The answer to a request, in OpenAI's shape.

        Raises:
            Overloaded: too many wait for the generator.
            InvalidRequest: the request is at fault, or no candidate has a score.
            GeneratorError: the generator cannot be reached, failed or refuses the request.
            DeadlineExceeded: there was no answer in time.
            QuorumError: as `ScoringService.rank`.
        """
        if self._num_open >= self._most:
            raise Overloaded("too many requests wait for the generator", retry_after_s=_RETRY_AFTER_S)
        self._num_open += 1
        try:
            with self._service.under_way():
                async with keep_deadline(call.deadline_s):
                    return await self._answer(body, call)
        finally:
            self._num_open -= 1

    async def _answer(self, body: ChatBody | CompletionBody, call: Call) -> dict[str, Any]:
        model, ensemble = await self._names(body)
        if isinstance(body, ChatBody):
            plan = plan_chat(body, model=model, num_candidates=self._num_candidates)
        else:
            plan = plan_completion(body, model=model, num_candidates=self._num_candidates)
        self._registry.get(ensemble)  # before the generator's work, not after it
        candidates = await self._generate(plan, call.deadline_s)
        ranked = await self._service.rank(rank_request(plan, candidates, ensemble), call)
        answer = make_answer(plan, candidates, ranked)
        self._observer.picked(answer["choices"][0]["quorum"]["std"], len(answer["quorum"]["failed"]))
        return answer

    async def _names(self, body: ChatBody | CompletionBody) -> tuple[str, str | None]:
        """The generator's model and the ensemble that a request means."""
        ensemble = body.quorum.ensemble
        if body.model is None:
            return await self._default_model(), ensemble
        if body.model.partition("@")[0] not in {one.name for one in self._registry.list()}:
            return body.model, ensemble
        return await self._default_model(), ensemble or body.model

    async def _default_model(self) -> str:
        if self._model is None:
            names = await self._generator.models()
            if not names:
                raise GeneratorError("the generator serves no model")
            # The first is its base model: adapters that are loaded later follow it.
            self._model = names[0]
        return self._model

    async def _generate(self, plan: Plan, deadline_s: float | None) -> Candidates:
        started_s = time.perf_counter()
        remaining_s = None if deadline_s is None else deadline_s - asyncio.get_running_loop().time()
        if remaining_s is not None and remaining_s <= 0:
            raise DeadlineExceeded("the deadline of this request passed before anything was generated")
        try:
            body = await self._generator.call("POST", plan.path, plan.body, deadline_s=remaining_s)
            candidates = read_candidates(plan, body)
        except QuorumError as error:
            self._observer.generation_failed(error.code)
            raise
        tokens = candidates.reply.get("usage") or {}
        self._observer.generated(
            time.perf_counter() - started_s, plan.num_candidates, int(tokens.get("completion_tokens") or 0)
        )
        return candidates

    async def models(self) -> list[str]:
        """Names of the generator's models; none while it is away."""
        try:
            return await self._generator.models(deadline_s=_MODELS_DEADLINE_S)
        except (GeneratorError, DeadlineExceeded):
            return []

    async def aclose(self) -> None:
        """Close the connections to the generator."""
        await self._generator.aclose()
