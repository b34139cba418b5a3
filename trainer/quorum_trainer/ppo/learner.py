"""Gradient steps on a step's experience.

    Experience  --Learner.learn-->  policy and value model changed; figures

The order of minibatches is a function of seed and step alone, so that a resumed run goes on as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from quorum_trainer.ppo.batches import Padded, cut, pad
from quorum_trainer.ppo.config import PPOConfig
from quorum_trainer.ppo.experience import Experience
from quorum_trainer.ppo.kl import k3
from quorum_trainer.ppo.losses import clipped_policy_loss, clipped_value_loss, completion_weights, token_weights
from quorum_trainer.ppo.policy import Policy
from quorum_trainer.training.loop import TrainingDiverged, schedule_factor


class Learner:
    """The optimiser of a run.

    Args:
        policy: what it changes.
        config: of the run.
    """

    def __init__(self, policy: Policy, config: PPOConfig) -> None:
        self._policy = policy
        self._config = config
        options = config.update
        self._sets = [list(policy.parameters().values()), list(policy.value_parameters().values())]
        self._rates = [options.lr, options.value_lr]
        groups = [{"params": own, "lr": rate} for own, rate in zip(self._sets, self._rates, strict=True) if own]
        self._optimiser = torch.optim.AdamW(groups, weight_decay=options.weight_decay)

    def learn(self, experience: Experience, *, step: int, coefficient: float) -> dict[str, float]:
        """Descend on all minibatches of all epochs, or until the policy has moved as far as `kl.early_stop` lets it.

        Args:
            experience: of this step.
            step: from 0.
            coefficient: of the KL, which GRPO's loss needs.

        Returns:
            Figures by the names that the log has.

        Raises:
            TrainingDiverged: a loss or a gradient is not finite; the policy is as it was before that minibatch.
        """
        factor = schedule_factor(step, self._config.steps, self._config.update)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=False):
            group["lr"] = rate * factor
        sums: dict[str, float] = {}
        count = 0
        limit = self._config.kl.early_stop
        stopped = False
        for minibatch in self._minibatches(len(experience.pairs), step):
            figures = self._backward(experience, minibatch, coefficient)
            count += 1
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value
            if limit is not None and figures["kl/step"] > limit:
                stopped = True  # before this minibatch's own step
                break
            self._optimiser.step()
        means = {name: value / count for name, value in sums.items()}
        means["kl/step"] = figures["kl/step"]  # of the last minibatch: how far the policy has come
        return {**means, "loss/minibatches": float(count), "kl/stopped": float(stopped), "loss/lr": self._rate}

    def state(self) -> dict[str, Tensor]:
        """Parameters and moments, to be taken up by `restore`."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._named():
            tensors[name] = parameter.detach()
            for moment, value in self._optimiser.state.get(parameter, {}).items():
                tensors[f"{name}|{moment}"] = torch.as_tensor(value)
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, parameter in self._named():
            parameter.data.copy_(tensors[name])
            prefix = f"{name}|"
            moments = {key.removeprefix(prefix): own for key, own in tensors.items() if key.startswith(prefix)}
            if moments:
                self._optimiser.state[parameter] = {
                    key: own.clone() if key == "step" else own.to(parameter.device).clone()
                    for key, own in moments.items()
                }

    @property
    def _rate(self) -> float:
        return float(self._optimiser.param_groups[0]["lr"])

    def _named(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        yield from self._policy.parameters().items()
        yield from self._policy.value_parameters().items()

    def _minibatches(self, count: int, step: int) -> Iterator[list[int]]:
        options = self._config.update
        for epoch in range(options.epochs):
            order = torch.randperm(count, generator=_generator(self._config.seed, step, epoch)).tolist()
            # As even as can be: a last minibatch of one completion would count as much as a full one.
            parts = max(1, round(count / options.minibatch))
            for part in range(parts):
                yield order[part * count // parts : (part + 1) * count // parts]

    def _backward(self, experience: Experience, minibatch: Sequence[int], coefficient: float) -> dict[str, float]:
        config = self._config
        mask = experience.mask[list(minibatch)]
        weigh = completion_weights if config.estimator == "grpo" else token_weights
        weights = torch.zeros_like(experience.old)
        weights[list(minibatch)] = weigh(mask)
        figures: dict[str, float] = {}
        self._optimiser.zero_grad(set_to_none=True)
        for part in cut(experience.pairs, minibatch, config.update.micro_batch_tokens):
            batch = pad([experience.pairs[index] for index in part], self._policy.pad_id, self._policy.device)
            rows = _Rows(experience, part, batch.width, self._policy.device)
            own = weights[part, : batch.width].to(self._policy.device)
            found = self._policy_part(batch, rows, own, coefficient)
            if experience.returns is not None:
                found |= self._value_part(batch, rows, own)
            for name, value in found.items():
                figures[name] = figures.get(name, 0.0) + value
        norms = [torch.nn.utils.clip_grad_norm_(own, config.update.max_norm).item() for own in self._sets if own]
        figures["loss/gradient_norm"] = norms[0]
        if not all(map(math.isfinite, [*norms, *figures.values()])):
            raise TrainingDiverged("a loss or a gradient is not finite: lower update.lr")
        return figures

    def _policy_part(self, batch: Padded, rows: _Rows, weights: Tensor, coefficient: float) -> dict[str, float]:
        temperature = self._config.rollout.temperature
        seen = self._policy.figures(batch, temperature=temperature, grad=True)
        # Before any exp: what is infinite under the mask would be NaN in the gradient, however it is masked later.
        logprobs = seen.logprobs.masked_fill(weights == 0, 0.0)
        policy = clipped_policy_loss(
            logprobs, rows.old, rows.advantages * rows.importance, weights, clip=self._config.update.clip
        )
        loss = policy.loss
        if self._config.estimator == "grpo":
            loss = loss + coefficient * (k3(logprobs, rows.reference) * weights).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        moved = k3(rows.old, logprobs.detach())
        return {
            "loss/policy": loss.item(),
            "loss/clipped": policy.clipped.item(),
            "kl/step": (moved * weights).sum().item(),
        }

    def _value_part(self, batch: Padded, rows: _Rows, weights: Tensor) -> dict[str, float]:
        values = self._policy.values(batch, grad=True)
        assert rows.values is not None
        assert rows.returns is not None
        loss = clipped_value_loss(values, rows.values, rows.returns, weights, clip=self._config.update.value_clip)
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss/value": loss.item()}


class _Rows:
    """Some rows of an experience, as wide as their batch, on the policy's device."""

    def __init__(self, experience: Experience, rows: list[int], width: int, device: torch.device) -> None:
        def take(tensor: Tensor) -> Tensor:
            return tensor[rows, :width].to(device)

        self.old = take(experience.old)
        self.reference = take(experience.reference)
        self.importance = take(experience.importance)
        self.advantages = take(experience.advantages)
        self.values = None if experience.values is None else take(experience.values)
        self.returns = None if experience.returns is None else take(experience.returns)


def _generator(seed: int, step: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 1_009 + epoch)
