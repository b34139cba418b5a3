"""TRL's reward function over a fake server: what is sent, what is logged, what is raised."""

from __future__ import annotations

import inspect
import pickle
from collections import defaultdict
from typing import Any

import pytest

from quorum_client.adapters.trl import RemoteReward
from quorum_client.errors import DeadlineExceeded, InvalidRequest
from tests.clients.adapters.conftest import FakeServer

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


class Log:
    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = defaultdict(list)
        self.columns: dict[str, list[Any]] = defaultdict(list)

    def metric(self, name: str, value: float) -> None:
        self.metrics[name].append(value)

    def extra(self, name: str, values: list[Any]) -> None:
        self.columns[name].extend(values)


async def test_plain_text_is_joined_and_taken_as_it_is(fake: FakeServer) -> None:
    reward = RemoteReward("http://q", mode="lcb", beta=2.0, ensemble="e", api_key="k" * 20)
    rewards = await reward(["ab", "abc"], ["x", "yz"], completion_ids=[[1], [2]], label=[1, 2], trainer_state=None)
    assert rewards == [4.0, 6.0]  # the fake server: length + 1
    (body,) = fake.bodies
    assert body["inputs"] == [{"text": "abx", "prompt": "ab"}, {"text": "abcyz", "prompt": "abc"}]
    assert {name: body[name] for name in ("mode", "beta", "ensemble", "center", "normalize")} == {
        "mode": "lcb", "beta": 2.0, "ensemble": "e", "center": "none", "normalize": True,
    }  # fmt: skip
    assert fake.keys == ["Bearer " + "k" * 20]


async def test_messages_are_left_to_the_ensembles_template(fake: FakeServer) -> None:
    await RemoteReward("http://q")([[USER], [USER]], [[ASSISTANT], [ASSISTANT, USER, ASSISTANT]])
    assert fake.bodies[0]["inputs"] == [
        {"prompt": [USER], "response": "Hello"},
        {"prompt": [USER, ASSISTANT, USER], "response": "Hello"},
    ]
    assert "mode" not in fake.bodies[0]  # the ensemble's default


async def test_groups(fake: FakeServer) -> None:
    await RemoteReward("http://q", center="group")(["a", "a"], ["x", "y"])
    assert fake.bodies[0]["inputs"] == [{"text": "ax", "prompt": "a"}, {"text": "ay", "prompt": "a"}]
    assert fake.bodies[0]["center"] == "group"
    await RemoteReward("http://q", center="group")([[USER]] * 2, [[ASSISTANT]] * 2)
    assert fake.bodies[1]["inputs"] == [{"prompt": [USER], "response": "Hello"}] * 2


async def test_what_is_logged(fake: FakeServer) -> None:
    def edit(results: list[dict[str, Any]]) -> None:
        results[0]["truncated"] = True

    fake.edit = edit
    log = Log()
    await RemoteReward("http://q")(["a", "b"], ["x", "yy"], log_extra=log.extra, log_metric=log.metric)
    assert log.columns == {"quorum_mean": [3.0, 4.0], "quorum_std": [1.0, 1.0], "quorum_truncated": [1.0, 0.0]}
    assert log.metrics == {"quorum/mean": [3.5], "quorum/std": [1.0], "quorum/truncated": [0.5]}


async def test_two_rewards_of_one_trainer_are_logged_under_their_names(fake: FakeServer) -> None:
    log = Log()
    for name in ("quorum", "safety"):
        reward = RemoteReward("http://q", name=name)
        assert reward.__name__ == name
        await reward(["a"], ["x"], log_extra=log.extra, log_metric=log.metric)
    assert {len(values) for values in log.metrics.values()} == {1}
    assert {name for name in log.columns if name.startswith("safety_")} == {
        "safety_mean", "safety_std", "safety_truncated",
    }  # fmt: skip
    assert log.metrics["safety/mean"] == log.metrics["quorum/mean"] == [3.0]


async def test_one_member_logs_no_std(fake: FakeServer) -> None:
    def edit(results: list[dict[str, Any]]) -> None:
        for result in results:
            result.update(std=None, members=result["members"][:1])

    fake.edit = edit
    log = Log()
    await RemoteReward("http://q")(["a"], ["x"], log_extra=log.extra, log_metric=log.metric)
    assert set(log.columns) == {"quorum_mean", "quorum_truncated"}


@pytest.mark.parametrize("code", ["empty_text", "non_finite_score"])
async def test_an_item_without_a_score_is_raised(fake: FakeServer, code: str) -> None:
    def edit(results: list[dict[str, Any]]) -> None:
        results[1] = {"error": {"code": code, "message": "why"}}

    fake.edit = edit
    log = Log()
    with pytest.raises(InvalidRequest, match="item 1: why") as raised:
        await RemoteReward("http://q")(["a", "b"], ["x", "y"], log_extra=log.extra, log_metric=log.metric)
    assert raised.value.code == code
    assert not log.columns


async def test_a_server_that_is_away_is_raised_after_the_deadline(fake: FakeServer) -> None:
    fake.down = True
    with pytest.raises(DeadlineExceeded, match="connection_failed"):
        await RemoteReward("http://q", deadline_s=0.2)(["a"], ["x"])


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("a", ""),
        ("a", " \n"),
        ("a", [ASSISTANT]),
        ([USER], "x"),
        ([USER], []),
        ([USER], [USER]),
        ([USER], [{"role": "assistant"}]),
    ],
)
async def test_shapes_that_have_no_reward(fake: FakeServer, prompt: Any, completion: Any) -> None:
    with pytest.raises(InvalidRequest):
        await RemoteReward("http://q")([prompt], [completion])
    assert fake.bodies == []


async def test_fields_that_are_none_are_left_out(fake: FakeServer) -> None:
    """A column of messages has every field of any of them, None where a message has none."""
    padded = [{**turn, "tool_calls": None} for turn in (USER, ASSISTANT)]
    await RemoteReward("http://q")([padded[:1]], [padded[1:]])
    assert fake.bodies[0]["inputs"] == [{"prompt": [USER], "response": "Hello"}]
    for prompt, completion in (  # not ignored: the reward would be of another text
        ([{**USER, "tool_calls": [1]}], [ASSISTANT]),
        ([USER], [{**ASSISTANT, "tool_calls": [1]}]),
        ([USER], [{**ASSISTANT, "tool_calls": [1]}, {"role": "tool", "content": "4", "name": "add"}, ASSISTANT]),
    ):
        with pytest.raises(InvalidRequest):
            await RemoteReward("http://q")([prompt], [completion])
    assert len(fake.bodies) == 1


def test_trl_can_tell_what_it_is() -> None:
    reward = RemoteReward("http://q")
    assert inspect.iscoroutinefunction(reward.__call__)
    assert reward.__name__ == "quorum"
    assert pickle.loads(pickle.dumps(reward)).__dict__ == reward.__dict__
