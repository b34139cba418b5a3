"""What a step's completions teach: log-probabilities recomputed, rewards shaped, advantages estimated.

    [Sample]  --look_back (no gradient)-->  Experience;  figures of the step on the way

The generator's own log-probabilities serve two purposes only: they prove which adapter it served, and where a rollout
is a step old they weigh its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quorum_trainer.ppo.advantages import gae, grpo, rloo
from quorum_trainer.ppo.batches import Pair, cut, pad, stack
from quorum_trainer.ppo.config import PPOConfig
from quorum_trainer.ppo.kl import k1, k3
from quorum_trainer.ppo.losses import importance_weights
from quorum_trainer.ppo.policy import Policy
from quorum_trainer.ppo.samples import Sample
from quorum_trainer.ppo.shaping import completion_rewards, penalised, token_rewards
from quorum_trainer.ppo.tokens import masked_mean, masked_sum, whiten


@dataclass(frozen=True, slots=True)
class Experience:
    """A step's scored completions, on the CPU; `B` of them, `R` tokens of the longest one.

    pairs: token ids. mask: (B, R). old, reference: (B, R), log-probabilities of the policy when the step began and of
    the reference. importance: (B, R), 1 where the rollout is of this step's policy. advantages, returns, values:
    (B, R); the last two are None without a value model. paid: (B,), scores less penalties.
    """

    pairs: list[Pair]
    mask: Tensor
    old: Tensor
    reference: Tensor
    importance: Tensor
    advantages: Tensor
    returns: Tensor | None
    values: Tensor | None
    paid: Tensor


def look_back(
    policy: Policy, samples: Sequence[Sample], config: PPOConfig, *, coefficient: float, is_stale: bool
) -> tuple[Experience, dict[str, float]]:
    """Everything that is known before the first gradient.

    Args:
        policy: as the step begins.
        samples: those with a score.
        config: estimator, penalties, batching.
        coefficient: of the KL.
        is_stale: the samples are of the policy one step before.

    Returns:
        The experience, and figures by the names that the log has.
    """
    pairs: list[Pair] = [(sample.row.token_ids, sample.draw.token_ids) for sample in samples]
    seen = _look(policy, pairs, config)
    mask, old, reference = seen["mask"].bool(), seen["logprobs"], seen["reference"]
    behaviour = stack([torch.tensor(sample.draw.logprobs) for sample in samples], mask.shape[1])
    importance = torch.ones_like(old)
    if is_stale:
        importance = importance_weights(old, behaviour, mask, cap=config.rollout.importance_cap)
    penalties = config.penalties
    paid = penalised(
        torch.tensor([sample.reward.score for sample in samples]),
        mask.sum(-1),
        torch.tensor([sample.draw.ended for sample in samples]),
        missing_eos=penalties.missing_eos,
        per_token=penalties.per_token,
        free_tokens=penalties.free_tokens,
    )
    values = seen.get("values")
    advantages, returns = _advantages(samples, paid, old, reference, values, mask, config, coefficient)
    figures = {
        "reward/paid": paid.mean().item(),
        "kl/reference": masked_sum(k1(old, reference), mask).mean().item(),
        "kl/reference_k3": masked_sum(k3(old, reference), mask).mean().item(),
        "kl/coefficient": coefficient,
        "policy/entropy": masked_mean(seen["entropy"], mask).item(),
        "policy/importance": masked_mean(importance, mask).item(),
    }
    if not is_stale:
        figures["kl/generator"] = masked_mean((seen["plain"] - behaviour).abs(), mask).item()
    if values is not None and returns is not None:
        figures["value/mean"] = masked_mean(values, mask).item()
        figures["value/explained"] = _explained(values[mask], returns[mask])
    return Experience(pairs, mask, old, reference, importance, advantages, returns, values, paid), figures


def generator_gap(policy: Policy, samples: Sequence[Sample], config: PPOConfig) -> float:
    """Mean distance of the generator's log-probabilities from this policy's, nats a token, at temperature 1."""
    pairs: list[Pair] = [(sample.row.token_ids, sample.draw.token_ids) for sample in samples]
    total, count = 0.0, 0
    for part in cut(pairs, range(len(pairs)), config.update.micro_batch_tokens):
        batch = pad([pairs[index] for index in part], policy.pad_id, policy.device)
        plain = policy.figures(batch, temperature=config.rollout.temperature).plain.cpu()
        said = stack([torch.tensor(samples[index].draw.logprobs) for index in part], batch.width)
        total += masked_sum((plain - said).abs(), batch.mask.cpu()).sum().item()
        count += int(batch.mask.sum())
    return total / count


def _look(policy: Policy, pairs: list[Pair], config: PPOConfig) -> dict[str, Tensor]:
    """Figures of all tokens, (B, R) each, in the order of `pairs`."""
    temperature = config.rollout.temperature
    rows: dict[str, dict[int, Tensor]] = {}
    for part in cut(pairs, range(len(pairs)), config.update.micro_batch_tokens):
        batch = pad([pairs[index] for index in part], policy.pad_id, policy.device)
        own = policy.figures(batch, temperature=temperature)
        found = {
            "mask": batch.mask.float(),
            "logprobs": own.logprobs,
            "plain": own.plain,
            "entropy": own.entropy,
            "reference": policy.figures(batch, temperature=temperature, of="reference").logprobs,
        }
        if policy.has_value:
            found["values"] = policy.values(batch)
        lengths = batch.mask.sum(-1).tolist()
        for name, tensor in found.items():
            for place, index in enumerate(part):
                rows.setdefault(name, {})[index] = tensor[place, : lengths[place]].float().cpu()
    return {name: stack([own[index] for index in range(len(pairs))]) for name, own in rows.items()}


def _advantages(
    samples: Sequence[Sample],
    paid: Tensor,
    old: Tensor,
    reference: Tensor,
    values: Tensor | None,
    mask: Tensor,
    config: PPOConfig,
    coefficient: float,
) -> tuple[Tensor, Tensor | None]:
    """(advantages, returns); GRPO's KL is a part of its loss, that of the others of the reward."""
    if config.estimator == "gae":
        assert values is not None
        rewards = token_rewards(paid, old, reference, mask, coefficient=coefficient)
        options = config.update
        advantages, returns = gae(rewards, values, mask, discount=options.discount, trace=options.trace)
        return whiten(advantages, mask), returns
    groups = torch.tensor([sample.place for sample in samples])
    if config.estimator == "rloo":
        own = rloo(completion_rewards(paid, old, reference, mask, coefficient=coefficient), groups)
    else:
        own = grpo(paid, groups)
    return own.unsqueeze(1).expand_as(mask).masked_fill(~mask, 0.0), None


def _explained(values: Tensor, returns: Tensor) -> float:
    """1 - var(returns - values) / var(returns); 0 where returns do not vary."""
    spread = returns.var(unbiased=False)
    return 0.0 if spread == 0 else (1 - (returns - values).var(unbiased=False) / spread).item()
