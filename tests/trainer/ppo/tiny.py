"""A policy of sixteen words, and a generator and a reward in this process: everything of a run but the servers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quorum_trainer.ppo.batches import pad
from quorum_trainer.ppo.config import PolicyOptions, PPOConfig
from quorum_trainer.ppo.learner import Learner
from quorum_trainer.ppo.loop import Loop, Parts
from quorum_trainer.ppo.policy import Policy, load_policy
from quorum_trainer.ppo.prompts import load_prompts
from quorum_trainer.ppo.rollout import Sources
from quorum_trainer.ppo.samples import Draw, PromptRow, Reward
from quorum_trainer.runs.run_folder import RunFolder

SPECIAL = ["<pad>", "<s>", "</s>"]
WORDS = [f"w{number}" for number in range(13)]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} {{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{% endif %}"
)
CPU = torch.device("cpu")


def write_policy(folder: Path, *, heads: int = 4, seed: int = 0) -> Path:
    """A Llama of two layers with random weights."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w0"
    )
    fast.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=heads, num_key_value_heads=heads // 2, max_position_embeddings=64,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data.mul_(10)  # adapters do not reach it: with small rows every policy is near uniform
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_prompts(path: Path, count: int = 6) -> Path:
    rows = [{"prompt": " ".join(WORDS[(n + k) % 13] for k in range(1 + n % 4))} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class LocalSampler:
    """Samples with Transformers, token by token, from the adapters that are published. `fails` may raise first."""

    def __init__(self, folder: Path, config: PPOConfig, *, always: str | None = None) -> None:
        self._policy = load_policy(config.policy, with_value=False, seed=99, device=CPU)
        self._config = config
        self._folders: dict[str, Path] = {}
        self.asked: list[tuple[int, int]] = []
        self.published: list[int] = []
        self.fails: Callable[[int, int], None] = lambda step, place: None
        self.always = always
        """This handle's weights, whatever is asked for: a server that forgot to load the new ones."""

    async def publish(self, folder: Path, step: int) -> str:
        self.published.append(step)
        handle = f"adapter-{step}"
        self._folders[handle] = folder
        self._states = getattr(self, "_states", {})
        self._states[handle] = load_file(folder / "adapter_model.safetensors")
        return handle

    async def retire(self, handle: str) -> None:
        self._folders.pop(handle)

    async def greedy(self, row: PromptRow) -> str:
        return "w1 w2"

    async def sample(self, row: PromptRow, handle: str, *, step: int, place: int) -> list[Draw]:
        self.fails(step, place)
        self.asked.append((step, place))
        assert handle in self._folders, "not published, or retired already"
        self._policy.put_adapter(self._states[self.always or handle])
        rollout = self._config.rollout
        generator = torch.Generator().manual_seed(step * 1000 + place)
        draws = []
        for _ in range(rollout.samples):
            ids: list[int] = []
            logprobs: list[float] = []
            while len(ids) < rollout.max_new_tokens and (not ids or ids[-1] != 2):
                batch = pad([(row.token_ids, [*ids, 0])], 0, CPU)
                with torch.no_grad():
                    logits = self._policy._model(input_ids=batch.ids[:, :-1]).logits[0, -1].float()
                token = int(torch.multinomial((logits / rollout.temperature).softmax(-1), 1, generator=generator))
                ids.append(token)
                logprobs.append(logits.log_softmax(-1)[token].item())
            words = [[*SPECIAL, *WORDS][token] for token in ids if token > 2]
            draws.append(Draw(tuple(ids), tuple(logprobs), ids[-1] == 2, " ".join(words)))
        return draws


@dataclass
class WordReward:
    """Share of a completion's tokens that are this word; std over two members that differ by `spread`."""

    word: int = 5
    needs_reference: bool = False
    spread: float = 0.1
    version: str = "a" * 12
    broken: Callable[[Draw], str | None] = lambda draw: None
    seen: list[str] = field(default_factory=list)

    async def score(self, row: PromptRow, draws: Sequence[Draw], reference: str | None) -> list[Reward]:
        self.seen += [draw.text for draw in draws]
        rewards = []
        for draw in draws:
            error = self.broken(draw)
            value = sum(token == self.word for token in draw.token_ids) / len(draw.token_ids)
            rewards.append(
                Reward(None, version=self.version, error=error)
                if error
                else Reward(value, value + self.spread, self.spread, self.version)
            )
        return rewards


def make_config(policy: Path, prompts: Path, **changes: Any) -> PPOConfig:
    """A config of a tiny run; `changes` by section."""
    values: dict[str, Any] = {
        "name": "tiny",
        "policy": {"model": str(policy), "rank": 4, "alpha": 8},
        "prompts": {"path": str(prompts), "max_tokens": 16},
        "generator": {"url": "http://127.0.0.1:1/v1", "model": "base", "tolerance": 1e-3},
        "reward": {"url": "http://127.0.0.1:1"},
        "steps": 3,
        "rollout": {"prompts": 4, "samples": 4, "max_new_tokens": 6},
        "update": {"lr": 3e-3, "value_lr": 3e-3, "minibatch": 8},
        "kl": {"coefficient": 0.05, "early_stop": None},
    }
    for name, value in changes.items():
        values[name] = {**values[name], **value} if isinstance(values.get(name), dict) and value else value
    return PPOConfig.model_validate(values)


@dataclass
class Run:
    loop: Loop
    policy: Policy
    sampler: LocalSampler
    reward: WordReward
    said: list[str]
    folder: RunFolder

    def die(self) -> None:
        """As a process that ends: its lock is free."""
        self.folder._lock.release()


def make_run(
    config: PPOConfig,
    folder: Path,
    *,
    resume: bool = False,
    reward: WordReward | None = None,
    gold: WordReward | None = None,
    sampler: LocalSampler | None = None,
) -> Run:
    """All parts of a run in `folder`."""
    keeper = RunFolder(folder, checkpoint_seconds=0)
    keeper.claim(config, {}, resume=resume)
    policy = load_policy(config.policy, with_value=config.estimator == "gae", seed=config.seed, device=CPU)
    rows, _ = load_prompts(config.prompts, policy.tokenizer, max_tokens=config.prompts.max_tokens)
    sampler = sampler or LocalSampler(folder, config)
    reward = reward or WordReward()
    said: list[str] = []
    sources = Sources(sampler, reward, gold, folder / "journal", 4)
    parts = Parts(
        config, policy, Learner(policy, config), rows, sources, keeper, 0.5, said.append, lambda figures, step: None
    )
    return Run(Loop(parts), policy, sampler, reward, said, keeper)


def fingerprint(policy: Policy) -> str:
    """Of all that a run learns."""
    digest = hashlib.sha256()
    for name, own in sorted({**policy.parameters(), **policy.value_parameters()}.items()):
        digest.update(name.encode() + own.detach().numpy().tobytes())
    return digest.hexdigest()


def options(folder: Path) -> PolicyOptions:
    return PolicyOptions(model=str(folder), rank=4, alpha=8)
