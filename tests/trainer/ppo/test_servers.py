"""What a run says to its servers and hears from them: rewards, completions, adapters, and the journal of it all."""

from __future__ import annotations

import json
import threading
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from quorum_client.async_client import AsyncClient
from quorum_client.errors import GenerationInvalid
from quorum_client.generation import Generator
from quorum_trainer.config import ConfigError
from quorum_trainer.data.pairs import DataError
from quorum_trainer.ppo.config import PromptOptions, RewardOptions, RolloutOptions, read_ppo_config
from quorum_trainer.ppo.generator import VllmSampler
from quorum_trainer.ppo.journal import JournalCorrupt, open_step
from quorum_trainer.ppo.policy import load_policy
from quorum_trainer.ppo.prompts import load_prompts
from quorum_trainer.ppo.record import StepLog, sample_figures
from quorum_trainer.ppo.reward import EnsembleSwapped, RewardSource
from quorum_trainer.ppo.run import open_reward
from quorum_trainer.ppo.samples import Draw, PromptRow, Reward, Sample
from quorum_trainer.ppo.summary import draw_curves, summarise
from tests.trainer.ppo.tiny import CPU, make_config, options

ROW = PromptRow(0, "Hi", (1, 2))


def draw(text: str) -> Draw:
    return Draw((3, 2), (-1.0, -0.5), True, text)


class Server:
    """A Quorum server as far as POST /score goes: a text's score is its length."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.version = "a" * 12
        self.fails = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.fails:
            self.fails -= 1
            error = {"code": "not_ready", "message": "soon", "retryable": True}
            return httpx.Response(503, json={"error": error})
        body = json.loads(request.content)
        self.bodies.append(body)
        results = [
            {"error": {"code": "not_finite", "message": "NaN"}}
            if item["response"] == "nan"
            else {
                "score": len(item["response"]),
                "mean": len(item["response"]) + 0.5,
                "std": 0.5,
                "members": [1.0, 2.0],
            }
            for item in body["inputs"]
        ]
        ensemble = {"name": "tiny", "version": self.version}
        answer = {"id": "1", "ensemble": ensemble, "mode": "lcb", "beta": 1.0, "center": body["center"]}
        usage = {"prompt_tokens": 1, "computed_tokens": 1}
        return httpx.Response(200, json={**answer, "results": results, "usage": usage})


def source(server: Server, **options: Any) -> RewardSource:
    http = httpx.AsyncClient(transport=httpx.MockTransport(server))
    client = AsyncClient("http://quorum", http_client=http, deadline_s=5, max_retries=20)
    return RewardSource(client, RewardOptions(url="http://quorum", **options))


async def test_rewards_are_the_servers_and_what_has_none_says_why() -> None:
    server = Server()
    asked = source(server, mode="lcb", beta=2.0, ensemble="tiny")
    rewards = await asked.score(ROW, [draw("four"), draw(" \n"), draw("nan"), draw("sixsix")], None)
    assert [one.score for one in rewards] == [4, None, None, 6]
    assert [one.error for one in rewards] == [None, "empty_completion", "not_finite", None]
    assert rewards[0] == Reward(4, 4.5, 0.5, "a" * 12)
    (body,) = server.bodies
    assert [item["response"] for item in body["inputs"]] == ["four", "nan", "sixsix"]
    assert {name: body[name] for name in ("mode", "beta", "ensemble", "center")} == {
        "mode": "lcb", "beta": 2.0, "ensemble": "tiny", "center": "none",
    }  # fmt: skip


async def test_a_server_that_comes_back_is_waited_for() -> None:
    server = Server()
    server.fails = 2
    assert (await source(server).score(ROW, [draw("four")], None))[0].score == 4


async def test_centring_by_group_and_by_reference() -> None:
    server = Server()
    grouped = source(server, center="group")
    assert [one.error for one in await grouped.score(ROW, [draw("four"), draw("")], None)] == [
        "group_too_small", "empty_completion",
    ]  # fmt: skip
    assert not server.bodies
    compared = source(server, center="reference")
    assert compared.needs_reference
    await compared.score(ROW, [draw("four")], "its reference")
    assert server.bodies[0]["inputs"][0]["reference"] == "its reference"
    assert (await compared.score(ROW, [draw("four")], " "))[0].error == "empty_reference"


async def test_a_swap_is_refused_where_the_config_says_so() -> None:
    server = Server()
    for on_swap in ("record", "refuse"):
        asked = source(server, on_swap=on_swap)
        asked.expect("a" * 12)
        server.version = "b" * 12
        if on_swap == "record":
            assert (await asked.score(ROW, [draw("four")], None))[0].version == "b" * 12
        else:
            with pytest.raises(EnsembleSwapped, match=r"was aaaaaaaaaaaa .* and is bbbbbbbbbbbb now"):
                await asked.score(ROW, [draw("four")], None)


class Vllm:
    """vLLM's routes as far as a run uses them."""

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.requests: list[dict[str, Any]] = []
        self.without: str | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        body = json.loads(request.content) if request.content else {}
        if path.endswith("/models"):
            return httpx.Response(200, json={"data": [{"id": name} for name in ["base", *self.loaded]]})
        if path.endswith("/load_lora_adapter"):
            self.loaded[body["lora_name"]] = body["lora_path"]
            return httpx.Response(200, text="ok")
        if path.endswith("/unload_lora_adapter"):
            if self.loaded.pop(body["lora_name"], None) is None:
                return httpx.Response(404, json={"error": {"message": "the adapter cannot be found"}})
            return httpx.Response(200, text="ok")
        if body["model"] not in {"base", *self.loaded}:
            return httpx.Response(404, json={"error": {"message": "no such model"}})
        self.requests.append(body)
        choice = {
            "text": "w1 w2", "finish_reason": "stop", "token_ids": [4, 5, 2],
            "logprobs": {"token_logprobs": [-1, -2, -3]},
        }  # fmt: skip
        if self.without:
            choice.pop(self.without)
        return httpx.Response(200, json={"choices": [{**choice, "index": k} for k in range(body["n"])]})


def sampler(server: Vllm) -> VllmSampler:
    generator = Generator("http://vllm/v1", deadline_s=5)
    generator._sdk = generator._sdk.with_options(http_client=httpx.AsyncClient(transport=httpx.MockTransport(server)))
    rollout = RolloutOptions(prompts=2, samples=3, max_new_tokens=7, temperature=0.9)
    return VllmSampler(generator, "base", rollout, "run", 5, frozenset({2}))


async def test_adapters_have_names_of_their_own_and_completions_seeds(tmp_path: Path) -> None:
    server = Vllm()
    asked = sampler(server)
    first, second = await asked.publish(tmp_path / "0", 0), await asked.publish(tmp_path / "1", 1)
    assert server.loaded == {first: str(tmp_path / "0"), second: str(tmp_path / "1")}
    draws = await asked.sample(ROW, second, step=1, place=0)
    assert draws == [Draw((4, 5, 2), (-1.0, -2.0, -3.0), True, "w1 w2")] * 3
    await asked.sample(ROW, second, step=1, place=1)
    await asked.sample(ROW, second, step=1, place=0)
    one, other, again = server.requests
    assert one["seed"] == again["seed"] != other["seed"]
    assert one["prompt"] == [1, 2]
    assert (one["n"], one["temperature"], one["max_tokens"], one["model"]) == (3, 0.9, 7, second)
    await asked.retire(first)
    assert list(server.loaded) == [second]
    await asked.retire(first)  # gone already: a server that was started anew
    assert await sampler(server).publish(tmp_path / "1", 1) != second  # another process, another name


async def test_a_server_that_was_started_anew_gets_its_adapter_again(tmp_path: Path) -> None:
    server = Vllm()
    asked = sampler(server)
    handle = await asked.publish(tmp_path / "0", 0)
    server.loaded.clear()
    assert len(await asked.sample(ROW, handle, step=0, place=0)) == 3
    assert server.loaded == {handle: str(tmp_path / "0")}


@pytest.mark.parametrize("missing", ["token_ids", "logprobs"])
async def test_a_generator_that_is_not_vllm_is_refused(tmp_path: Path, missing: str) -> None:
    server = Vllm()
    asked = sampler(server)
    handle = await asked.publish(tmp_path, 0)
    server.without = missing
    with pytest.raises(GenerationInvalid, match="is it vLLM"):
        await asked.sample(ROW, handle, step=0, place=0)
    server.without = None
    assert await asked.greedy(ROW) == "w1 w2"
    assert server.requests[-1]["temperature"] == 0
    assert server.requests[-1]["model"] == "base"


def test_a_journal_gives_back_what_was_heard(tmp_path: Path) -> None:
    draws = [draw("one"), Draw((7,), (-0.1,), False, "größer \ud800")]
    rewards = [Reward(1.0, 1.5, 0.5, "v"), Reward(None, version="v", error="not_finite")]
    with open_step(tmp_path, 3) as journal:
        journal.add_draws(0, 9, draws, adapter="abc", elapsed_s=1.0)
        journal.add_rewards("reward", 0, rewards, elapsed_s=0.5)
        journal.add_reference(1, "a reference", elapsed_s=0.25)
    path = tmp_path / "000003.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "reward", "place": 1, "rew')  # killed while it was written
    with open_step(tmp_path, 3) as journal:
        heard = journal.heard
        assert heard.draws == {0: draws}
        assert heard.adapters == {0: "abc"}
        assert heard.rewards == {"reward": {0: rewards}, "gold": {}}
        assert heard.references == {1: "a reference"}
        assert heard.seconds == {"sample": 1.0, "reward": 0.5, "reference": 0.25}
        journal.add_rewards("gold", 0, rewards, elapsed_s=0.0)
    assert path.read_bytes().startswith(whole + b'{"kind": "gold"')
    path.write_bytes(b"not json\n" + whole)
    with pytest.raises(JournalCorrupt, match="line 1"):
        open_step(tmp_path, 3)


def test_prompts_are_in_the_template_and_long_ones_are_counted(policy_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_policy(options(policy_folder), with_value=False, seed=0, device=CPU).tokenizer
    path = tmp_path / "prompts.jsonl"
    turns = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2"},
        {"role": "user", "content": "w3"},
    ]
    rows = [{"prompt": "w1 w2", "reference": "w4"}, {"prompt": "w1 " * 30}, {"prompt": turns}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, too_long = load_prompts(PromptOptions(path=str(path)), tokenizer, max_tokens=10)
    assert too_long == 1
    assert [row.token_ids for row in found] == [(1, 4, 5), (1, 4, 5, 6)]
    assert [row.reference for row in found] == ["w4", None]
    assert [row.index for row in found] == [0, 1]
    with pytest.raises(DataError, match=r"no prompt of at most 1 tokens \(3 longer ones\)"):
        load_prompts(PromptOptions(path=str(path)), tokenizer, max_tokens=1)
    path.write_text('{"prompt": "w1"}\n{"text": "w1"}\n')
    with pytest.raises(DataError, match="line 2: "):
        load_prompts(PromptOptions(path=str(path)), tokenizer, max_tokens=10)


def test_figures_of_samples_by_hand() -> None:
    rewards = [Reward(1.0, 1.5, 0.5, "v"), Reward(2.0, 3.0, 1.0, "v"), Reward(None, error="not_finite")]
    samples = [
        Sample(0, number, ROW, Draw((number, 2), (0.0, 0.0), number != 2, ""), reward, Reward(float(number)))
        for number, reward in enumerate(rewards)
    ]
    figures = sample_figures(samples, std_limit=0.7)
    assert figures == pytest.approx(
        {
            "reward/score": 1.5, "reward/mean": 2.25, "reward/score_std": 0.5**0.5, "reward/gold": 1.0,
            "reward/unscored": 1 / 3, "uncertainty/std": 0.75, "uncertainty/mean_minus_score": 0.75,
            "uncertainty/out_of_range": 0.5, "length/mean": 2.0, "length/ended": 2 / 3, "policy/distinct": 1.0,
        }
    )  # fmt: skip
    assert "uncertainty/out_of_range" not in sample_figures(samples, std_limit=None)


def test_a_log_that_is_ahead_of_its_checkpoint_is_cut(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl", 0)
    for step in range(3):
        log.add({"step": step, "reward/score": step / 2})
    again = StepLog(tmp_path / "log.jsonl", 2)
    assert again.series("reward/score") == [0.0, 0.5]
    again.add({"step": 2, "reward/score": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["reward/score"] for line in lines] == [0.0, 0.5, 9.0]


def test_a_summary_and_its_curves(tmp_path: Path) -> None:
    times = {"time/waited": 1.0, "time/look_back": 2.0, "time/learn": 3.0}
    lines = [
        {"step": step, "versions": ["v" if step < 6 else "w"], "reward/score": float(step), "kl/reference": 0.5 * step,
         "uncertainty/std": 1.0, "length/mean": 4.0, "alarm/overoptimization": float(step == 7), **times}
        for step in range(8)
    ]  # fmt: skip
    summary = summarise(lines)
    assert summary["reward/score"] == {
        "first": 0.5, "last": 6.5, "difference": 6.0, "standard_error": pytest.approx((0.25 + 0.25) ** 0.5),
    }  # fmt: skip
    assert summary["versions"] == ["v", "w"]
    assert summary["alarms"] == [7]
    assert summary["seconds"]["learn"] == 24.0
    assert "reward/gold" not in summary
    draw_curves(lines, "a run", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert summarise(lines[:1])["reward/score"]["standard_error"] is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"estimator": "grpo", "rollout": {"samples": 1}}, "estimator 'grpo' compares a prompt's samples"),
        ({"reward": {"center": "group"}, "rollout": {"samples": 1}}, "center 'group'"),
        ({"kl": {"coefficient": 0.0, "target": 1.0}}, "stays there"),
        ({"rollout": {"overlap": True, "temperature": 0.8}}, "overlap"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_configs_that_mean_nothing_are_refused(
    policy_folder: Path, prompts: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        make_config(policy_folder, prompts, **change)


def test_paths_are_relative_to_the_config(policy_folder: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "policy").symlink_to(policy_folder)
    (tmp_path / "prompts.jsonl").symlink_to(prompts)
    text = """
name: tiny
policy: {model: policy}
prompts: {path: prompts.jsonl}
generator: {url: http://127.0.0.1:1/v1, model: base}
reward: {url: http://127.0.0.1:2}
"""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    config = read_ppo_config(path)
    assert config.policy.model == str(policy_folder)
    assert config.prompts.path == str(prompts)
    path.write_text(text + "stepz: 3\n")
    with pytest.raises(ConfigError, match="stepz"):
        read_ppo_config(path)


async def test_servers_get_the_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server beyond loopback has keys: without them there would be no run on several machines."""
    heard: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers["Authorization"])
            body = json.dumps({"ensembles": [], "desired": []}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("QUORUM_API_KEY", "k" * 16)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            async with AsyncExitStack() as stack:
                await open_reward(RewardOptions(url=f"http://127.0.0.1:{server.server_port}"), "a-run", stack)
        finally:
            server.shutdown()
            thread.join()
    assert heard == ["Bearer " + "k" * 16]
