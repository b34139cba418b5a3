"""POST /v1/chat/completions and /v1/completions: OpenAI's routes, answered by the best of N candidates.

    body  --Gateway.answer-->  body, or events where `stream` is set

Errors leave in Quorum's shape with the two fields that OpenAI's has besides. Knows nothing of ranking.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.responses import JSONResponse

from quorum_client.errors import QuorumError
from quorum_server.body import JsonRoute
from quorum_server.errors import ERROR_RESPONSES, error_response
from quorum_server.gateway.answer import as_events
from quorum_server.gateway.bodies import ChatBody, CompletionBody
from quorum_server.gateway.gateway import Gateway
from quorum_server.routes.dependencies import CallDep, ServiceDep

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          413: "invalid_request_error", 422: "invalid_request_error", 429: "rate_limit_error"}  # fmt: skip


class OpenAIRoute(JsonRoute):
    """A route whose errors an OpenAI client can sort."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler of `JsonRoute`."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except QuorumError as error:
                plain = error_response(error, request.state.request_id)
                body = json.loads(bytes(plain.body))
                body["error"] |= {"type": _TYPES.get(error.status, "server_error"), "param": None}
                kept = {name: value for name, value in plain.headers.items() if name in ("retry-after",)}
                return JSONResponse(body, error.status, kept)

        return answer


router = APIRouter(
    prefix="/v1",
    route_class=OpenAIRoute,
    tags=["gateway"],
    responses={**ERROR_RESPONSES, 502: {**ERROR_RESPONSES[500], "description": "The generator is away or failed"}},
)


def _get_gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(_get_gateway)]


@router.post("/chat/completions")
async def chat(body: ChatBody, gateway: GatewayDep, _: ServiceDep, call: CallDep) -> Response:
    """The best of N answers to a dialogue, in OpenAI's shape; options under `quorum`."""
    return _respond(body, await gateway.answer(body, call), is_chat=True)


@router.post("/completions")
async def complete(body: CompletionBody, gateway: GatewayDep, _: ServiceDep, call: CallDep) -> Response:
    """The best of N continuations of a text, in OpenAI's shape; options under `quorum`."""
    return _respond(body, await gateway.answer(body, call), is_chat=False)


def _respond(body: ChatBody | CompletionBody, answer: dict[str, Any], *, is_chat: bool) -> Response:
    if not body.stream:
        return JSONResponse(answer)
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    events = as_events(answer, is_chat=is_chat, include_usage=include_usage)
    return Response(events, media_type="text/event-stream")
