"""What completions are worth: a Quorum server asked, its ensemble's version watched.

    prompt, draws  --RewardSource.score-->  [Reward], one a draw

A completion without a score has the reason in its place, never a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from quorum_client.async_client import AsyncClient
from quorum_client.errors import QuorumError
from quorum_client.types import ScoreResult
from quorum_trainer.ppo.config import RewardOptions
from quorum_trainer.ppo.samples import Draw, PromptRow, Reward

EMPTY, ALONE, NO_REFERENCE = "empty_completion", "group_too_small", "empty_reference"
"""Why a completion was not sent: it is nothing but white space; nothing to be centred with; nor to be compared with."""


class EnsembleSwapped(QuorumError):
    """The server answers by another version of the ensemble, and the config says `on_swap: refuse`."""

    code = "ensemble_swapped"


class Rewarder(Protocol):
    """Says what completions are worth. needs_reference: of each prompt, an answer to compare with."""

    needs_reference: bool

    async def score(self, row: PromptRow, draws: Sequence[Draw], reference: str | None) -> list[Reward]:
        """One reward a draw."""


class RewardSource:
    """Rewards from POST /score.

    Args:
        client: of the Quorum server; tries again on its own.
        options: ensemble, mode, beta, centring, and what a swap means.
    """

    def __init__(self, client: AsyncClient, options: RewardOptions) -> None:
        self._client = client
        self._options = options
        self.needs_reference = options.center == "reference"
        self._version: str | None = None

    def expect(self, version: str) -> None:
        """This version gave the rewards before: what `on_swap: refuse` compares with."""
        self._version = version

    async def score(self, row: PromptRow, draws: Sequence[Draw], reference: str | None) -> list[Reward]:
        """As `Rewarder.score`.

        Raises:
            EnsembleSwapped: see there.
            QuorumError: no answer within the deadline, or the server refuses the options.
        """
        if self.needs_reference and not (reference or "").strip():
            return [Reward(None, error=NO_REFERENCE) for _ in draws]
        sent = [index for index, draw in enumerate(draws) if draw.text.strip()]
        rewards = [Reward(None, error=EMPTY) for _ in draws]
        if self._options.center == "group" and len(sent) < 2:
            for index in sent:
                rewards[index] = Reward(None, error=ALONE)
            return rewards
        if not sent:
            return rewards
        item: dict[str, object] = {"prompt": row.prompt if isinstance(row.prompt, str) else list(row.prompt)}
        if self.needs_reference:
            item["reference"] = reference
        options = {"ensemble": self._options.ensemble, "mode": self._options.mode, "beta": self._options.beta}
        answer = await self._client.score(
            [{**item, "response": draws[index].text} for index in sent],
            center=self._options.center,
            **{name: value for name, value in options.items() if value is not None},  # type: ignore[arg-type]
        )
        self._check_version(answer.ensemble.version)
        for index, result in zip(sent, answer.results, strict=True):
            rewards[index] = _reward(result, answer.ensemble.version)
        return rewards

    def _check_version(self, version: str) -> None:
        if self._version is None:
            self._version = version
        elif version != self._version and self._options.on_swap == "refuse":
            raise EnsembleSwapped(
                f"the ensemble at {self._options.url} was {self._version} when this run began and is {version} now; "
                "serve the former again, or set on_swap: record"
            )


def _reward(result: ScoreResult, version: str) -> Reward:
    if result.error is not None or result.score is None:
        return Reward(None, version=version, error=result.error.code if result.error is not None else "no_score")
    return Reward(result.score, result.mean, result.std, version)
