"""Requests of one prompt have one key, in every protocol; and how many replicas a queue asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from quorum_ray.affinity import affinity_key
from quorum_ray.messages import Request
from quorum_ray.scaling import replicas_for
from quorum_server.settings import Settings

MESSAGES = [{"role": "user", "content": "How do I make tea?"}]


def key(body: Any) -> str:
    return affinity_key(json.dumps(body).encode())


@pytest.mark.parametrize(
    "bodies",
    [
        [{"inputs": [{"prompt": "a", "response": text}]} for text in "xy"],
        [{"inputs": [{"prompt": MESSAGES, "response": text}]} for text in "xy"],
        [{"prompt": "a", "candidates": ["x", "y"]}, {"prompt": "a", "a": "x", "b": "y"}],
        [{"pairs": [{"prompt": "a", "a": "x", "b": "y"}]}, {"pairs": [{"prompt": "a", "a": "z", "b": "y"}]}],
        [{"model": "m", "messages": MESSAGES}, {"messages": MESSAGES, "n": 3}],
        # OpenRLHF sends the prompt beside the whole text.
        [{"query": [f"a long prompt{text}"], "prompts": ["a long prompt"], "labels": [""]} for text in "xy"],
        # vLLM's and TEI's shapes have templated text, whose beginning must do.
        [{"model": "m", "input": f"{'prompt ' * 50}{text}"} for text in "xy"],
        [{"inputs": [f"{'prompt ' * 50}{text}"]} for text in "xy"],
    ],
)
def test_candidates_of_a_prompt_have_one_key(bodies: list[Any]) -> None:
    keys = {key(body) for body in bodies}
    assert len(keys) == 1
    assert keys != {""}


def test_prompts_have_keys_of_their_own() -> None:
    keys = {key({"inputs": [{"prompt": f"prompt {number}", "response": "x"}]}) for number in range(100)}
    assert len(keys) == 100


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b"{}", b'{"inputs": []}', b'{"inputs": [[]]}', b"[" * 100_000]
)
def test_what_has_no_prompt_may_go_anywhere(body: bytes) -> None:
    assert affinity_key(body) == ""


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("POST", "/score", True),
        ("GET", "/v1/ensembles", True),
        ("PUT", "/v1/ensembles/a", True),
        ("PUT", "/v1/ensembles/a/members/m00", False),
        ("DELETE", "/v1/ensembles/a", False),
    ],
)
def test_only_what_comes_to_the_same_is_asked_again(method: str, target: str, expected: bool) -> None:
    assert Request(method, target, (), b"").may_be_repeated is expected


@pytest.mark.parametrize(
    ("queued", "current", "expected"), [(0, 1, 1), (100, 1, 1), (101, 1, 2), (1000, 2, 10), (0, 5, 4), (0, 2, 1)]
)
def test_replicas_follow_the_queue_and_leave_one_by_one(queued: float, current: int, expected: int) -> None:
    assert replicas_for(queued, 100, current) == expected


def test_the_committed_deployment_is_one() -> None:
    """Its arguments are options, and its settings are the server's."""
    pytest.importorskip("ray.serve", reason="Ray is not installed (extra ray)")
    from quorum_ray.application import Options

    config = yaml.safe_load((Path(__file__).parents[3] / "deploy/ray/serve.yaml").read_text())
    (application,) = config["applications"]
    options = Options(**application["args"])
    assert set(options.settings) <= set(Settings.model_fields)
    assert application["import_path"] == "quorum_ray.application:build"


def test_a_cluster_is_not_opened_by_mistake() -> None:
    """As `quorum serve` beyond loopback: with keys, or where somebody says that it may be open."""
    pytest.importorskip("ray.serve", reason="Ray is not installed (extra ray)")
    from quorum_ray.application import build

    with pytest.raises(ValueError, match="api_keys_file"):
        build({})
    with pytest.raises(ValueError, match="playground"):
        build({"settings": {"allow_anonymous": True, "ui": True}})
