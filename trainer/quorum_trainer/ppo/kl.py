"""How far a policy is from its reference, and the coefficient that holds it there. Pure.

    log-probabilities of sampled tokens  --k1, k2, k3-->  nats a token
    nats a completion  --FixedKL, AdaptiveKL-->  coefficient of the next step

KL is always KL(policy || reference), over tokens that the policy sampled. k1, k2 and k3 are the estimators of
J. Schulman, "Approximating KL divergence" (2020): with the ratio ρ = reference / policy of a sampled token,
k1 = -log ρ (unbiased, high variance, may be negative), k2 = (log ρ)² / 2 (biased, low variance), and
k3 = ρ - 1 - log ρ (unbiased, low variance, >= 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """-log ρ, element by element."""
    return logprobs - reference


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """(log ρ)² / 2, element by element."""
    return 0.5 * (logprobs - reference).square()


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """ρ - 1 - log ρ, element by element; also the KL term of GRPO (arXiv 2402.03300, eq. 4)."""
    log_ratio = reference - logprobs
    return torch.expm1(log_ratio) - log_ratio


class KLController(Protocol):
    """coefficient: nats to reward, of the step under way."""

    @property
    def coefficient(self) -> float: ...  # noqa: D102
    def after(self, kl: float) -> KLController:
        """The controller of the next step.

        Args:
            kl: of the policy that the step's completions were sampled from, in nats a completion.
        """


@dataclass(frozen=True, slots=True)
class FixedKL:
    """The same coefficient throughout."""

    coefficient: float

    def after(self, kl: float) -> FixedKL:  # noqa: ARG002
        """Itself."""
        return self


@dataclass(frozen=True, slots=True)
class AdaptiveKL:
    """A coefficient that brings the KL to a target (Ziegler et al., arXiv 1909.08593, section 2.2).

    e = clip((KL - target) / target, -0.2, 0.2), next coefficient = coefficient (1 + gain · e).

    target: nats a completion, > 0. gain: K_β of the paper, where it is 0.1.
    """

    coefficient: float
    target: float
    gain: float = 0.1

    def after(self, kl: float) -> AdaptiveKL:
        """The coefficient moved towards what gives the target."""
        error = min(max((kl - self.target) / self.target, -0.2), 0.2)
        return AdaptiveKL(self.coefficient * (1.0 + self.gain * error), self.target, self.gain)
