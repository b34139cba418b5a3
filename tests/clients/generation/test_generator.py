"""The generator's client against a real HTTP server: what is sent, what is read, and every way to fail."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from quorum_client.errors import (
    DeadlineExceeded,
    GenerationInvalid,
    GeneratorError,
    GeneratorRefused,
    InvalidRequest,
    ModelNotFound,
)
from quorum_client.generation import (
    Generation,
    Generator,
    SamplingOptions,
    TokenCounts,
    derive_seed,
    load_adapter,
    unload_adapter,
)
from quorum_client.generation.types import NUM_SEEDS
from tests.clients.generation.fake_generator import FakeGenerator, refusal, text_of


def ask(fake: FakeGenerator, prompt: Any = "why", *, chat: bool = True, **changes: Any) -> Generation:
    """One call without waiting between attempts."""
    options = {"deadline_s": 20.0, "max_retries": 2, **changes.pop("client", {})}

    async def go() -> Generation:
        async with Generator(fake.url, **options) as generator:
            generator._jitter = lambda: 0.0
            method = generator.chat if chat else generator.complete
            return await method(prompt, model="base", sampling=SamplingOptions(**changes))

    return asyncio.run(go())


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "completions"])
def test_choices_come_in_their_order_with_ids_and_logprobs(fake: FakeGenerator, chat: bool) -> None:
    answer = ask(fake, "why", chat=chat, n=3, seed=7, token_ids=True, logprobs=True)
    texts = [text_of("why", 7 + index) for index in range(3)]
    assert [one.text for one in answer.completions] == texts
    assert [one.token_ids for one in answer.completions] == [tuple(map(ord, text)) for text in texts]
    assert answer.completions[2].logprobs == tuple(-float(place) for place in range(len(texts[2])))
    assert {one.finish_reason for one in answer.completions} == {"stop"}
    assert answer.prompt_token_ids == (1, 2)
    assert answer.usage == TokenCounts(3, 9)


def test_only_what_was_asked_is_sent(fake: FakeGenerator) -> None:
    ask(fake, [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why"}], max_tokens=None)
    ask(fake, [3, 4], chat=False, n=2, temperature=0.5, top_p=0.9, stop=("\n",), seed=1, extra={"top_k": 5})
    chat, text = fake.behaviour.bodies
    assert chat == {
        "model": "base", "n": 1, "temperature": 1.0, "top_p": 1.0,
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why"}],
    }  # fmt: skip
    assert text == {
        "model": "base", "prompt": [3, 4], "n": 2, "temperature": 0.5, "top_p": 0.9, "stop": ["\n"], "seed": 1,
        "max_tokens": 512, "top_k": 5,
    }  # fmt: skip


def test_the_key_is_sent_and_not_shown(fake: FakeGenerator) -> None:
    ask(fake, client={"api_key": "secret"})
    assert fake.behaviour.headers[0]["authorization"] == "Bearer secret"
    assert "secret" not in repr(Generator(fake.url, api_key="secret"))


@pytest.mark.parametrize(
    "failure", [refusal(503, "starting"), refusal(429, "slow down"), PlainTextResponse("<html>", 502)]
)
def test_what_may_pass_is_asked_again(fake: FakeGenerator, failure: Response) -> None:
    fake.behaviour.failures = [failure, failure]
    assert ask(fake).completions[0].text == text_of("why", 0)
    assert len(fake.behaviour.bodies) == 3


def test_retry_after_is_waited_for(fake: FakeGenerator) -> None:
    fake.behaviour.failures = [refusal(429, "slow down", **{"retry-after": "1"})]
    started = time.monotonic()
    ask(fake)
    assert time.monotonic() - started >= 1.0


@pytest.mark.parametrize(
    ("status", "error", "attempts"),
    [(400, GeneratorRefused, 1), (422, GeneratorRefused, 1), (401, GeneratorError, 1), (404, ModelNotFound, 1),
     (500, GeneratorError, 3), (503, GeneratorError, 3)],
)  # fmt: skip
def test_errors_by_status(fake: FakeGenerator, status: int, error: type[GeneratorError], attempts: int) -> None:
    fake.behaviour.failures = [refusal(status, "the reason") for _ in range(3)]
    with pytest.raises(error, match=f"{status}: the reason") as caught:
        ask(fake)
    assert type(caught.value) is error
    assert len(fake.behaviour.bodies) == attempts


def drop_one(reply: dict[str, Any]) -> None:
    """A choice fewer than asked for."""
    reply["choices"].pop()


def no_choices(reply: dict[str, Any]) -> None:
    """None at all."""
    reply["choices"] = []


def same_index(reply: dict[str, Any]) -> None:
    """Two choices with one index."""
    reply["choices"][0]["index"] = 0


def no_message(reply: dict[str, Any]) -> None:
    """A choice without a message."""
    del reply["choices"][0]["message"]


def tool_call(reply: dict[str, Any]) -> None:
    """A choice that is no text."""
    reply["choices"][0]["message"]["tool_calls"] = [{"id": "t"}]


def fewer_ids(reply: dict[str, Any]) -> None:
    """Ids and log-probabilities of different lengths."""
    reply["choices"][0]["token_ids"].pop()


@pytest.mark.parametrize("edit", [drop_one, no_choices, same_index, no_message, tool_call, fewer_ids])
def test_an_answer_that_is_none_is_an_error(fake: FakeGenerator, edit: Callable[[dict[str, Any]], None]) -> None:
    fake.behaviour.edit = edit
    with pytest.raises(GenerationInvalid):
        ask(fake, n=3, token_ids=True, logprobs=True)


def test_a_page_is_no_answer(fake: FakeGenerator) -> None:
    fake.behaviour.failures = [PlainTextResponse("<html>hello</html>")]
    with pytest.raises(GenerationInvalid, match="cannot be read"):
        ask(fake)


def test_the_deadline_holds_over_all_attempts(fake: FakeGenerator) -> None:
    fake.behaviour.delay_s = 5.0
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        ask(fake, client={"deadline_s": 0.5})
    assert time.monotonic() - started < 4


def test_nobody_there(fake: FakeGenerator) -> None:
    async def go() -> None:
        async with Generator("http://127.0.0.1:9/v1", max_retries=0, deadline_s=5) as generator:
            await generator.chat("why", model="base")

    with pytest.raises(GeneratorError, match="cannot reach the generator") as caught:
        asyncio.run(go())
    assert caught.value.retryable


def test_so_many_at_once_and_no_more(fake: FakeGenerator) -> None:
    fake.behaviour.delay_s = 0.05

    async def go() -> None:
        async with Generator(fake.url, max_in_flight=3) as generator:
            await asyncio.gather(*(generator.chat("why", model="base") for _ in range(12)))

    asyncio.run(go())
    assert fake.behaviour.most_running == 3


def test_models_and_adapters(fake: FakeGenerator, tmp_path: Path) -> None:
    async def go() -> list[list[str]]:
        seen = []
        async with Generator(fake.url, max_retries=2) as generator:
            generator._jitter = lambda: 0.0
            # The answer is lost, and the second attempt hears that the first one did it.
            fake.behaviour.failures = [JSONResponse({}, 503)]
            await load_adapter(generator, "policy-1", tmp_path)
            seen.append(await generator.models())
            with pytest.raises(GeneratorRefused, match="already been loaded"):
                await load_adapter(generator, "policy-1", tmp_path)
            fake.behaviour.failures = [JSONResponse({}, 503)]
            await unload_adapter(generator, "policy-1")
            seen.append(await generator.models())
            with pytest.raises(GeneratorError, match="cannot be found"):
                await unload_adapter(generator, "policy-1")
            with pytest.raises(InvalidRequest, match="absolute"):
                await load_adapter(generator, "policy-2", Path("relative"))
        return seen

    assert asyncio.run(go()) == [["base", "policy-1"], ["base"]]
    assert fake.behaviour.bodies[0] == {"lora_name": "policy-1", "lora_path": str(tmp_path)}


@pytest.mark.parametrize(
    "changes",
    [{"n": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_tokens": 0},
     {"stop": ("",)}, {"stop": "abc"}, {"extra": {"n": 4}}],
)  # fmt: skip
def test_options_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="sampling"):
        SamplingOptions(**changes)


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(fake: FakeGenerator, prompt: Any) -> None:
    for chat in (True, False):
        with pytest.raises(InvalidRequest, match="holds nothing"):
            ask(fake, prompt, chat=chat)


def test_seeds_are_each_prompts_own_and_repeat() -> None:
    seeds = [derive_seed(run, prompt, turn) for run in (0, 1) for prompt in ("a", "b", "ab") for turn in (0, 1)]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [derive_seed(run, prompt, turn) for run in (0, 1) for prompt in ("a", "b", "ab") for turn in (0, 1)]
    assert derive_seed(0, "ab", "c") != derive_seed(0, "a", "bc")
    assert all(0 <= derive_seed(0, index) < NUM_SEEDS for index in range(1000))


def test_a_body_of_messages_is_json(fake: FakeGenerator) -> None:
    ask(fake, 'ünïcode\u2028 "quoted"')
    assert json.dumps(fake.behaviour.bodies[0]["messages"][0]["content"]) == json.dumps('ünïcode\u2028 "quoted"')
