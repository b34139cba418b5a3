"""For one text every route gives the number of /score at equal settings: a real server, drawn texts and settings."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorum_client.modes import MODES
from tests.integration.server_process import REAL_ENGINE, server
from tests.server.tiny_bundle import make_llama_bundle

# Another pass, another order of float32 sums (unit 6e-8), on scores of order 1 that a softmin's beta may scale.
TOLERANCE = 1e-5

PROMPT = "What is 2+2?"
HEADER = f"Human: {PROMPT}\n\nAssistant: "  # the ensemble's own format
RESPONSES = st.text("abcdefgh .,!?", min_size=1, max_size=40).filter(lambda text: bool(text.strip()))
OPTIONS = st.fixed_dictionaries(
    {"mode": st.sampled_from(MODES), "beta": st.floats(0.01, 4), "normalize": st.booleans()},
)


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    bundle = make_llama_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path
    with server(REAL_ENGINE, bundle) as process, httpx.Client(base_url=process.url, timeout=60) as client:
        yield client


def post(http: httpx.Client, path: str, body: Any, options: dict[str, Any]) -> Any:
    query = {name: str(value).lower() if isinstance(value, bool) else value for name, value in options.items()}
    reply = http.post(path, json=body, params=query)
    assert reply.status_code == 200, reply.text
    return reply.json()


def float32_of(text: str) -> float:
    return float(np.frombuffer(base64.b64decode(text), "<f4")[0])


def logit(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability)


def dialogue(response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": response}]


RAW = {"use_activation": False}

Ask = Callable[[str], tuple[str, dict[str, Any]]]
Read = Callable[[Any], float]

# Name to (route and body for a text in the ensemble's own format, as trainers send it; where the number is).
BY_TEXT: dict[str, tuple[Ask, Read]] = {
    "OpenRLHF": (
        lambda text: ("/get_reward", {"query": [text]}),
        lambda answer: answer["rewards"][0],
    ),
    "OpenRLHF, scores": (
        lambda text: ("/openrlhf/get_reward", {"query": [text], "prompts": [HEADER]}),
        lambda answer: logit(answer["scores"][0]),
    ),
    "vLLM classify": (
        lambda text: ("/vllm/classify", {"input": text, **RAW}),
        lambda answer: answer["data"][0]["probs"][0],
    ),
    "vLLM classify, activated": (
        lambda text: ("/vllm/classify", {"input": [text]}),
        lambda answer: logit(answer["data"][0]["probs"][0]),
    ),
    "vLLM pooling": (
        lambda text: ("/vllm/pooling", {"input": text, **RAW}),
        lambda answer: answer["data"][0]["data"][0],
    ),
    "SGLang classify": (
        lambda text: ("/sglang/classify", {"text": text}),
        lambda answer: answer["embedding"][0],
    ),
    "SGLang embeddings": (
        lambda text: ("/sglang/v1/embeddings", {"input": text, "encoding_format": "base64"}),
        lambda answer: float32_of(answer["data"][0]["embedding"]),
    ),
    "TEI predict": (
        lambda text: ("/tei/predict", {"inputs": text, "raw_scores": True}),
        lambda answer: answer[0]["score"],
    ),
}

# The same for a response, which the ensemble's own template joins to the prompt.
BY_PAIR: dict[str, tuple[Ask, Read]] = {
    "vLLM classify, messages": (
        lambda text: ("/vllm/classify", {"messages": dialogue(text), **RAW}),
        lambda answer: answer["data"][0]["probs"][0],
    ),
    "vLLM score": (
        lambda text: ("/vllm/score", {"queries": PROMPT, "documents": text, **RAW}),
        lambda answer: answer["data"][0]["score"],
    ),
    "vLLM rerank": (
        lambda text: ("/vllm/rerank", {"query": PROMPT, "documents": [text], **RAW}),
        lambda answer: answer["results"][0]["relevance_score"],
    ),
    "SGLang classify, conv": (
        lambda text: ("/sglang/classify", {"conv": [dialogue(text)]}),
        lambda answer: answer[0]["embedding"][0],
    ),
    "TEI predict, pair": (
        lambda text: ("/tei/predict", {"inputs": [PROMPT, text], "raw_scores": True}),
        lambda answer: answer[0]["score"],
    ),
    "TEI rerank": (
        lambda text: ("/tei/rerank", {"query": PROMPT, "texts": [text], "raw_scores": True}),
        lambda answer: answer[0]["score"],
    ),
}


@settings(max_examples=10, deadline=None)
@given(response=RESPONSES, options=OPTIONS)
def test_every_route_gives_the_number_of_score(http: httpx.Client, response: str, options: dict[str, Any]) -> None:
    pair = {"inputs": [{"prompt": PROMPT, "response": response}], **options}
    (expected,) = post(http, "/score", pair, {})["results"]
    # The template is plain, so the text that a trainer would have made of the pair is this one.
    for routes, text in ((BY_TEXT, HEADER + response), (BY_PAIR, response)):
        for name, (ask, read) in routes.items():
            number = read(post(http, *ask(text), options))
            assert number == pytest.approx(expected["score"], abs=TOLERANCE), name


# The same routes where the text is too long for the ensemble. side: which end is cut.
LONG_BY_TEXT: dict[str, tuple[Callable[[str, str], tuple[str, dict[str, Any]]], Read]] = {
    "vLLM classify": (
        lambda text, side: ("/vllm/classify", {"input": text, "truncation_side": side, **RAW}),
        BY_TEXT["vLLM classify"][1],
    ),
    "vLLM pooling": (
        lambda text, side: ("/vllm/pooling", {"input": text, "truncation_side": side, **RAW}),
        BY_TEXT["vLLM pooling"][1],
    ),
    "TEI predict": (
        lambda text, side: ("/tei/predict", {"inputs": text, "raw_scores": True, "truncation_direction": side}),
        BY_TEXT["TEI predict"][1],
    ),
}
LONG_PROMPT = PROMPT * 6
LONG_BY_PAIR: dict[str, tuple[Callable[[str, str], tuple[str, dict[str, Any]]], Read]] = {
    "vLLM score": (
        lambda text, side: ("/vllm/score", {"queries": LONG_PROMPT, "documents": text, "truncation_side": side, **RAW}),
        BY_PAIR["vLLM score"][1],
    ),
    "vLLM rerank": (
        lambda text, side: ("/vllm/rerank", {"query": LONG_PROMPT, "documents": text, "truncation_side": side, **RAW}),
        BY_PAIR["vLLM rerank"][1],
    ),
    "TEI predict, pair": (
        lambda text, side: (
            "/tei/predict",
            {"inputs": [LONG_PROMPT, text], "raw_scores": True, "truncation_direction": side},
        ),
        BY_PAIR["TEI predict, pair"][1],
    ),
    "TEI rerank": (
        lambda text, side: (
            "/tei/rerank",
            {"query": LONG_PROMPT, "texts": [text], "raw_scores": True, "truncation_direction": side},
        ),
        BY_PAIR["TEI rerank"][1],
    ),
}


def one_result(http: httpx.Client, item: dict[str, str], **options: Any) -> dict[str, Any]:
    (result,) = post(http, "/score", {"inputs": [item], **options}, {})["results"]
    assert result["truncated"]
    return result  # type: ignore[no-any-return]


def test_over_long_text(http: httpx.Client) -> None:
    response = "abc defg. "
    text = f"Human: {LONG_PROMPT}\n\nAssistant: {response}"
    numbers = []
    for side in ("left", "right"):
        for routes, asked, item in (
            (LONG_BY_TEXT, text, {"text": text}),
            (LONG_BY_PAIR, response, {"prompt": LONG_PROMPT, "response": response}),
        ):
            expected = one_result(http, item, truncate=side)["score"]
            numbers.append(expected)
            for name, (ask, read) in routes.items():
                assert read(post(http, *ask(asked, side), {})) == pytest.approx(expected, abs=TOLERANCE), (name, side)
    assert len({round(number, 3) for number in numbers}) > 2  # it matters which end is cut, and of what
    for name in ("OpenRLHF", "SGLang classify", "SGLang embeddings"):  # the ensemble says which end
        ask_text, read = BY_TEXT[name]
        expected = one_result(http, {"text": text})["score"]
        assert read(post(http, *ask_text(text), {})) == pytest.approx(expected, abs=TOLERANCE), name
    body = {"query": [text], "prompts": [text.removesuffix(response)]}
    expected = one_result(http, {"text": text, "prompt": body["prompts"][0]})
    answer = post(http, "/get_reward", body, {})
    assert answer["rewards"] == pytest.approx([expected["score"]], abs=TOLERANCE)
    assert answer["extra_logs"]["text_truncated"] == [1.0]


def test_modes_differ_so_that_equal_numbers_mean_equal_settings(http: httpx.Client) -> None:
    body = {"query": [HEADER + "It is four."]}
    rewards = [post(http, "/get_reward", body, {"mode": mode})["rewards"][0] for mode in MODES]
    raw = post(http, "/get_reward", body, {"mode": "mean", "normalize": False})["rewards"][0]
    numbers = sorted([*rewards, raw])
    assert min(np.diff(numbers)) > 100 * TOLERANCE
