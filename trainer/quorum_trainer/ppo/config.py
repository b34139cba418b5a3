"""A PPO run as data: one YAML file, checked whole before anything is loaded.

    CONFIG.yaml  --read_ppo_config-->  PPOConfig

Knows no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from quorum_client.modes import Mode
from quorum_model.bundle.manifest import NAME_PATTERN
from quorum_trainer.config.base import ConfigModel
from quorum_trainer.config.phases import Schedule
from quorum_trainer.config.read import folder_or_id, read_model, resolve_path

Estimator = Literal["gae", "rloo", "grpo"]
URL_PATTERN = r"^https?://"


class PolicyOptions(ConfigModel):
    """What learns: an adapter on every linear layer of a causal language model, the reference.

    model: a folder (relative to the config's), or a hub id; revision: of a hub id. dtype: of the frozen backbone;
    adapters stay in float32. rank: at most the generator's --max-lora-rank.
    """

    model: str = Field(min_length=1)
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0, allow_inf_nan=False)


class PromptOptions(ConfigModel):
    """What the policy answers: JSON lines (.gz too) with `prompt`, text or messages, and if wanted `reference`.

    max_tokens: longer prompts are left out, and counted. max_prompts: at most so many, the file's first.
    """

    path: str = Field(min_length=1)
    max_tokens: int = Field(512, ge=1)
    max_prompts: int | None = Field(None, ge=1)


class GeneratorOptions(ConfigModel):
    """The vLLM server that samples from the policy.

    url: as OpenAI's clients take it (…/v1). model: name under which it serves the policy's model, the reference.
    deadline_s: how long one call is tried. max_in_flight: prompts at the server at once. tolerance: how far its
    log-probabilities may lie from the trainer's, nats a token on average: beyond it the adapter that it serves is not
    the one that was saved. on_mismatch: what happens then.
    """

    url: str = Field(pattern=URL_PATTERN)
    model: str = Field(min_length=1)
    deadline_s: float = Field(600, gt=0, allow_inf_nan=False)
    max_in_flight: int = Field(64, ge=1)
    tolerance: float = Field(0.02, gt=0, allow_inf_nan=False)
    on_mismatch: Literal["warn", "stop"] = "stop"


class RewardOptions(ConfigModel):
    """Who says what a completion is worth.

    url: of a Quorum server. ensemble, mode, beta: the server's where left out. center: `reference` compares with the
    prompt's `reference`, or where its row has none with the reference policy's own greedy answer. on_swap: another
    version of the ensemble in the middle of the run is recorded, or refused. deadline_s: how long one call is tried.
    """

    url: str = Field(pattern=URL_PATTERN)
    ensemble: str | None = Field(None, min_length=1)
    mode: Mode | None = None
    beta: float | None = Field(None, ge=0, allow_inf_nan=False)
    center: Literal["none", "group", "reference"] = "none"
    on_swap: Literal["record", "refuse"] = "record"
    deadline_s: float = Field(600, gt=0, allow_inf_nan=False)


class RolloutOptions(ConfigModel):
    """What is sampled in a step. overlap: the next step's completions are sampled while this step is learned from:
    they come from the policy of one step before, their tokens weighed by truncated importance weights.

    max_unscored: share of a step's completions that may be without a score (blank, not finite) before the run stops.
    """  # noqa: D205

    prompts: int = Field(32, ge=1)
    samples: int = Field(4, ge=1)
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    overlap: bool = False
    importance_cap: float = Field(2.0, ge=1, allow_inf_nan=False)
    max_unscored: float = Field(0.25, ge=0, le=1)

    @model_validator(mode="after")
    def _check_overlap(self) -> RolloutOptions:
        if self.overlap and self.temperature != 1.0:
            raise ValueError("overlap needs temperature 1: a generator reports log-probabilities at no other")
        return self


class PenaltyOptions(ConfigModel):
    """Taken off a completion's score. missing_eos: where it was cut short. per_token: of each beyond free_tokens."""

    missing_eos: float = Field(0.0, ge=0, allow_inf_nan=False)
    per_token: float = Field(0.0, ge=0, allow_inf_nan=False)
    free_tokens: int = Field(0, ge=0)


class KLOptions(ConfigModel):
    """How the policy is held near its reference.

    coefficient: reward a nat. target: nats a completion that an adaptive coefficient keeps to; fixed if left out.
    gain: of the adaptive one. early_stop: nats a token that one step may move the policy by; null for no limit.
    """

    coefficient: float = Field(0.05, ge=0, allow_inf_nan=False)
    target: float | None = Field(None, gt=0, allow_inf_nan=False)
    gain: float = Field(0.1, gt=0, allow_inf_nan=False)
    early_stop: float | None = Field(0.1, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_target(self) -> KLOptions:
        if self.target is not None and self.coefficient == 0:
            raise ValueError("target: a coefficient that begins at 0 stays there")
        return self


class UpdateOptions(ConfigModel):
    """How a step's completions are learned from.

    epochs: passes over them. minibatch: completions to one optimiser step. lr, value_lr: peaks of policy and value
    model. clip: ε of the policy's ratio; value_clip: of values, in units of reward. discount, trace: γ, λ of gae.
    max_norm: of the gradient, of policy and value model apart. micro_batch_tokens: padded tokens whose activations are
    held at once: changes memory, not the result (but for rounding).
    """

    epochs: int = Field(2, ge=1)
    minibatch: int = Field(32, ge=1)
    lr: float = Field(1e-5, gt=0, allow_inf_nan=False)
    value_lr: float = Field(1e-4, gt=0, allow_inf_nan=False)
    schedule: Schedule = "constant"
    warmup: float = Field(0.0, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(0.2, gt=0, lt=1)
    value_clip: float = Field(0.2, gt=0, allow_inf_nan=False)
    discount: float = Field(1.0, gt=0, le=1)
    trace: float = Field(0.95, ge=0, le=1)
    max_norm: float = Field(1.0, gt=0)
    micro_batch_tokens: int = Field(8192, ge=1)


class AlarmOptions(ConfigModel):
    """When uncertainty climbs while the reward does (alarm.py).

    window: steps that are looked at. t: what both slopes' t statistics must exceed. rise: share by which the std must
    have risen over the window. stop: end the run then.
    """

    window: int = Field(20, ge=4)
    t: float = Field(3.0, gt=0, allow_inf_nan=False)
    rise: float = Field(0.1, ge=0, allow_inf_nan=False)
    stop: bool = False


class PPOConfig(ConfigModel):
    """Everything that a run depends on.

    estimator: `gae` (PPO with a value model), `rloo` or `grpo` (no value model, several samples a prompt). gold: a
    second reward that is measured and never learned from. save_steps: keep the policy of every so many steps.
    """

    name: str = Field(pattern=NAME_PATTERN)
    policy: PolicyOptions
    prompts: PromptOptions
    generator: GeneratorOptions
    reward: RewardOptions
    gold: RewardOptions | None = None
    estimator: Estimator = "gae"
    steps: int = Field(100, ge=1)
    rollout: RolloutOptions = RolloutOptions()
    penalties: PenaltyOptions = PenaltyOptions()
    kl: KLOptions = KLOptions()
    update: UpdateOptions = UpdateOptions()
    alarm: AlarmOptions = AlarmOptions()
    trackers: tuple[str, ...] = ("tensorboard",)
    save_steps: int | None = Field(None, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _check_groups(self) -> PPOConfig:
        if self.rollout.samples < 2:
            if self.estimator != "gae":
                raise ValueError(
                    f"estimator '{self.estimator}' compares a prompt's samples: rollout.samples must be >= 2"
                )
            if "group" in (self.reward.center, self.gold.center if self.gold is not None else None):
                raise ValueError("center 'group' compares a prompt's samples: rollout.samples must be >= 2")
        return self


def read_ppo_config(path: Path) -> PPOConfig:
    """Read and check a config file; paths in it are relative to its folder.

    Raises:
        ConfigError: no such file, not YAML, an unknown or missing field, an environment variable that is not set.
    """
    config = read_model(path, PPOConfig)
    prompts = str(resolve_path(config.prompts.path, path.parent, "prompts"))
    model = folder_or_id(config.policy.model, path.parent, "policy")
    return config.model_copy(
        update={
            "prompts": config.prompts.model_copy(update={"path": prompts}),
            "policy": config.policy.model_copy(update={"model": model}),
        }
    )
