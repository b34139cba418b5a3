"""A generator whose completions follow from prompt and seed by a simple rule, served by a real uvicorn.

Choice i of a prompt is "<last user text> #<seed + i>"; its token ids are the text's characters, its log-probabilities
minus the place of each. `Behaviour` makes it fail as servers do.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@dataclass(slots=True)
class Behaviour:
    """failures: answers to give first, one a request. delay_s: before each answer. edit: changes a good answer."""

    failures: list[Response] = field(default_factory=list)
    delay_s: float = 0.0
    edit: Any = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    running: int = 0
    most_running: int = 0


def refusal(status: int, message: str, **headers: str) -> JSONResponse:
    """An error in OpenAI's shape."""
    return JSONResponse({"error": {"message": message, "type": "x", "code": status}}, status, headers)


def text_of(prompt: str, seed: int) -> str:
    """The rule."""
    return f"{prompt} #{seed}"


def _choice(text: str, index: int, body: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    ids = [ord(char) for char in text]
    logprobs = [-float(place) for place in range(len(text))]
    choice: dict[str, Any] = {"index": index, "finish_reason": "stop"}
    if body.get("return_token_ids"):
        choice["token_ids"] = ids
    if chat:
        tokens = [{"token": char, "logprob": one} for char, one in zip(text, logprobs, strict=True)]
        return choice | {
            "message": {"role": "assistant", "content": text},
            "logprobs": {"content": tokens} if body.get("logprobs") else None,
        }
    if body.get("return_token_ids"):
        choice["prompt_token_ids"] = [1, 2]
    return choice | {"text": text, "logprobs": {"token_logprobs": logprobs} if body.get("logprobs") else None}


class FakeGenerator:
    """The application; `behaviour` may be changed while it runs."""

    def __init__(self) -> None:
        self.behaviour = Behaviour()
        self.url = ""
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def _complete(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        body, told = await request.json(), self.behaviour
        told.bodies.append(body)
        told.headers.append(dict(request.headers))
        told.running += 1
        told.most_running = max(told.most_running, told.running)
        try:
            await asyncio.sleep(told.delay_s)
            if told.failures:
                return told.failures.pop(0)
        finally:
            told.running -= 1
        prompt = body["messages"][-1]["content"] if chat else str(body["prompt"])
        seed, num = body.get("seed", 0), body.get("n", 1)
        choices = [_choice(text_of(prompt, seed + index), index, body, chat=chat) for index in range(num)]
        # Servers finish choices in any order.
        reply: dict[str, Any] = {"id": "c", "object": "x", "model": body["model"], "choices": choices[::-1]}
        reply["usage"] = {"prompt_tokens": len(prompt), "completion_tokens": 3 * num, "total_tokens": 0}
        if chat and body.get("return_token_ids"):
            reply["prompt_token_ids"] = [1, 2]
        if told.edit is not None:
            told.edit(reply)
        return JSONResponse(reply)

    async def _models(self, _: Request) -> Response:
        names = ["base", *self.behaviour.adapters]
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    async def _load(self, request: Request) -> Response:
        body, told = await request.json(), self.behaviour
        told.bodies.append(body)
        if body["lora_name"] in told.adapters:
            return refusal(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        told.adapters.append(body["lora_name"])
        return told.failures.pop(0) if told.failures else Response("Success")

    async def _unload(self, request: Request) -> Response:
        name, told = (await request.json())["lora_name"], self.behaviour
        if name not in told.adapters:
            return refusal(404, f"The lora adapter '{name}' cannot be found.")
        told.adapters.remove(name)
        return told.failures.pop(0) if told.failures else Response("Success")


@contextlib.contextmanager
def serve(fake: FakeGenerator) -> Iterator[FakeGenerator]:
    """On a free port of loopback, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server = uvicorn.Server(uvicorn.Config(fake.app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    ends = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < ends, "the fake generator does not start"
        time.sleep(0.01)
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
