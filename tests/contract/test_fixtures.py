"""Recorded pairs of every protocol: the server takes each request, and answers in the recorded answer's shape.

Each file of `fixtures/` says where its pairs come from and of which version. Numbers are the recorded model's own, so
that names, nesting and types are compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.server_process import FAKE_ENGINE, server
from tests.server.tiny_bundle import make_fake_bundle

OTHER_STATUSES = {("/vllm", 400): 422}
"""Where ours is another than the recorded one."""

FOLDER = Path(__file__).with_name("fixtures")
FILES = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
PAIRS = [
    pytest.param(content["prefix"], pair, id=f"{name} {index} {pair['path']}")
    for name, content in FILES.items()
    for index, pair in enumerate(content["pairs"])
]


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    bundle = make_fake_bundle(tmp_path_factory.mktemp("bundles") / "tiny", name="reward").path
    with server(FAKE_ENGINE, bundle) as process, httpx.Client(base_url=process.url, timeout=60) as client:
        yield client


def shape_of(value: Any) -> Any:
    """Names, nesting and types; of numbers only that they are numbers."""
    if isinstance(value, dict):
        return {name: shape_of(one) for name, one in value.items()}
    if isinstance(value, list):
        return [shape_of(one) for one in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return type(value).__name__


@pytest.mark.parametrize(("prefix", "pair"), PAIRS)
def test_pair(http: httpx.Client, prefix: str, pair: dict[str, Any]) -> None:
    path = prefix + pair["path"]
    reply = http.get(path) if pair["request"] is None else http.post(path, json=pair["request"])
    if pair["status"] >= 400:
        assert reply.status_code == OTHER_STATUSES.get((prefix, pair["status"]), pair["status"]), reply.text
        if prefix == "/tei":  # the others' errors are read by their status alone
            assert shape_of(reply.json()) == shape_of(pair["response"])
        return
    assert reply.status_code == 200, reply.text
    assert shape_of(reply.json()) == shape_of(pair["response"])


def test_every_protocol_says_what_it_was_recorded_from() -> None:
    assert set(FILES) == {"openrlhf", "verl", "vllm", "sglang", "tei", "openai"}
    for content in FILES.values():
        assert any(character.isdigit() for character in content["source"])
        assert content["pairs"]
