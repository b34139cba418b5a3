"""A generator: any server that speaks OpenAI's API, vLLM above all.

    prompt, SamplingOptions  --wire-->  OpenAI's SDK  --wire-->  Generation, or one QuorumError

The SDK sends; trying again, the deadline and the number of requests at once are ours, since the SDK's retries know no
deadline for the whole call.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from quorum_client._reply import RETRIED_STATUSES, retry_after_s
from quorum_client._request import CONNECT_TIMEOUT_S, Endpoint
from quorum_client._retry import Budget
from quorum_client.errors import (
    DeadlineExceeded,
    GeneratorError,
    GeneratorRefused,
    InvalidRequest,
    MissingExtra,
    ModelNotFound,
)
from quorum_client.generation.types import Generation, SamplingOptions
from quorum_client.generation.wire import (
    ChatPrompt,
    TextPrompt,
    chat_body,
    completion_body,
    error_message,
    read_chat,
    read_completion,
    read_models,
)

DEFAULT_DEADLINE_S = 600.0
DEFAULT_MAX_IN_FLIGHT = 16
_RETRIED_STATUSES = RETRIED_STATUSES | {408, 504}
_NO_KEY = "none"  # the SDK wants a key; servers without keys ignore it
_MESSAGE_LENGTH = 300

if TYPE_CHECKING:
    import openai


class Generator:
    """A server that completes prompts; for asyncio, one event loop.

    async with Generator("http://127.0.0.1:8001/v1") as generator:
        generation = await generator.chat("Why is the sky blue?", model="base", sampling=SamplingOptions(n=16))

    Args:
        base_url: as OpenAI's clients take it: usually ends in /v1. May carry a key as the password of basic auth.
        api_key: sent as a bearer token.
        deadline_s: seconds for one call with all its retries, counted from when it is its turn.
        max_retries: attempts after the first, where the server is away, overloaded or broken.
        max_in_flight: calls at the server at once; further ones wait here.
        called: what errors call it; with its address if left out.

    Raises:
        InvalidRequest: an argument has a wrong shape or value.
        MissingExtra: OpenAI's SDK is not installed.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        deadline_s: float = DEFAULT_DEADLINE_S,
        max_retries: int = 6,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        called: str | None = None,
    ) -> None:
        try:
            import openai  # here, because it takes a second that whoever generates nothing does without
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"a generator needs the openai extra: pip install 'quorum-rm[openai]' ({error})"
            ) from error
        if max_in_flight < 1:
            raise InvalidRequest("max_in_flight must be >= 1")
        endpoint = Endpoint.parse(base_url, api_key)
        self._url = str(endpoint.url)
        self._called = called or f"the generator at {self._url}"
        self._sdk = openai.AsyncOpenAI(
            base_url=self._url,
            api_key=_NO_KEY,
            default_headers={} if endpoint.authorization is None else {"Authorization": endpoint.authorization},
            max_retries=0,
        )
        self._deadline_s = deadline_s
        self._max_retries = max_retries
        self._turns = asyncio.Semaphore(max_in_flight)
        self._clock = time.monotonic
        self._sleep = asyncio.sleep
        self._jitter = random.random
        self._budget(None)  # refuses a deadline or a number of retries that no call could have

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._sdk.close()

    async def chat(
        self,
        prompt: ChatPrompt,
        *,
        model: str,
        sampling: SamplingOptions | None = None,
        deadline_s: float | None = None,
    ) -> Generation:
        """Answer a dialogue, in the server's chat template.

        Args:
            prompt: messages; a string is one user turn.
            model: name of a served model or adapter.
            sampling: its defaults if left out.
            deadline_s: instead of the generator's.

        Raises:
            GeneratorRefused: the request is at fault: too long a prompt, say.
            ModelNotFound: the server has no such model.
            GeneratorError: the server cannot be reached, is set up otherwise, or failed, also when asked again.
            GenerationInvalid: the answer is none, or has fewer completions than were asked for.
            DeadlineExceeded: there was no answer in time.
        """
        options = sampling or SamplingOptions()
        body = chat_body(prompt, model, options)
        return read_chat(await self.call("POST", "/chat/completions", body, deadline_s=deadline_s), options.n)

    async def complete(
        self,
        prompt: TextPrompt,
        *,
        model: str,
        sampling: SamplingOptions | None = None,
        deadline_s: float | None = None,
    ) -> Generation:
        """Continue text or token ids as they are, without a template; the rest as `chat`."""
        options = sampling or SamplingOptions()
        body = completion_body(prompt, model, options)
        return read_completion(await self.call("POST", "/completions", body, deadline_s=deadline_s), options.n)

    async def models(self, *, deadline_s: float | None = None) -> list[str]:
        """Names of what is served: models, and adapters in them. Raises as `chat`."""
        return read_models(await self.call("GET", "/models", deadline_s=deadline_s))

    async def call(
        self,
        method: Literal["GET", "POST"],
        path: str,
        body: dict[str, object] | None = None,
        *,
        deadline_s: float | None = None,
        is_done: Callable[[GeneratorError], bool] | None = None,
    ) -> str:
        """One call of any route, with retries: the body of its 2xx answer.

        Args:
            method: GET or POST.
            path: below the base URL.
            body: a JSON object.
            deadline_s: instead of the generator's.
            is_done: for calls that are not repeatable: whether an error of a later attempt says that an earlier one, of
                which there was no answer, has done it all.

        Returns:
            The body; empty where `is_done` says so. Raises as `chat`.
        """
        async with self._turns:
            budget = self._budget(deadline_s)
            is_repeated = False
            while True:
                try:
                    return await self._send(method, path, body, budget.remaining_s())
                except GeneratorError as error:
                    if is_repeated and is_done is not None and is_done(error):
                        return ""
                    delay_s = budget.delay_after(error)
                is_repeated = True
                await self._sleep(delay_s)

    def _budget(self, deadline_s: float | None) -> Budget:
        return Budget(
            deadline_s=self._deadline_s if deadline_s is None else deadline_s,
            max_retries=self._max_retries,
            clock=self._clock,
            jitter=self._jitter,
        )

    async def _send(
        self, method: Literal["GET", "POST"], path: str, body: dict[str, object] | None, remaining_s: float
    ) -> str:
        import openai

        timeout = openai.Timeout(remaining_s, connect=min(remaining_s, CONNECT_TIMEOUT_S))
        with _sdk_errors(self._called):
            async with asyncio.timeout(remaining_s):
                if method == "GET":
                    return await self._sdk.get(path, cast_to=str, options={"timeout": timeout})
                return await self._sdk.post(path, cast_to=str, body=body, options={"timeout": timeout})


@contextmanager
def _sdk_errors(called: str) -> Iterator[None]:
    """Turn what OpenAI's SDK raises into the error tree."""
    import openai

    try:
        yield
    except TimeoutError as error:
        raise DeadlineExceeded(f"no answer from {called} before the deadline") from error
    except openai.APIStatusError as error:
        raise _status_error(error, called) from error
    except openai.APIConnectionError as error:
        failure = GeneratorError(f"cannot reach {called}: {error.__cause__ or error.message}")
        failure.retryable = True
        raise failure from error
    except openai.OpenAIError as error:
        raise GeneratorError(f"{called}: {error}") from error


def _status_error(error: openai.APIStatusError, called: str) -> GeneratorError:
    said = error_message(error.body)
    message = f"{called} answered {error.status_code}: {(said or 'no reason given')[:_MESSAGE_LENGTH]}"
    if error.status_code in (400, 413, 422):
        return GeneratorRefused(message)
    if error.status_code == 404:
        return ModelNotFound(message)
    failure = GeneratorError(message, retry_after_s=retry_after_s(error.response.headers))
    failure.retryable = error.status_code in _RETRIED_STATUSES
    return failure
