"""The reward function of TRL's GRPOTrainer and RLOOTrainer.

    prompts, completions  --RemoteReward-->  rewards; mean, std and truncation through log_metric and log_extra

Tested with TRL 1.16. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from quorum_client.adapters import DEADLINE_S, MAX_RETRIES
from quorum_client.async_client import AsyncClient
from quorum_client.errors import InvalidRequest
from quorum_client.modes import Mode
from quorum_client.results import scores_of
from quorum_client.types import ScoreResult

Messages = Sequence[Mapping[str, Any]]


class RemoteReward:
    """A Quorum server as an asynchronous reward function.

        trainer = GRPOTrainer(..., reward_funcs=RemoteReward("http://127.0.0.1:8000", mode="lcb"))

    Messages are put into the ensemble's own chat template. Plain strings are joined, special tokens and all, as TRL
    does for reward models in its own process; unlike there, BOS and EOS stand exactly once, whoever writes them.

    Args:
        url: the server's address.
        mode: how members become a reward; the ensemble's default if None.
        beta: of the mode.
        ensemble: name or name@version; the only one loaded if None.
        normalize: apply each member's calibration.
        center: "group" subtracts each member's mean over the completions of one prompt in the call.
        name: under which it is logged; two in one trainer need two names.
        api_key: sent as a bearer token.
        deadline_s: how long to wait for the rewards of a call, the server's restarts and overload included.
    """

    def __init__(
        self,
        url: str,
        *,
        mode: Mode | None = None,
        beta: float | None = None,
        ensemble: str | None = None,
        normalize: bool = True,
        center: Literal["none", "group"] = "none",
        name: str = "quorum",
        api_key: str | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self.__name__ = name  # TRL reads it
        self._url = url
        self._mode = mode
        self._beta = beta
        self._ensemble = ensemble
        self._normalize = normalize
        self._center: Literal["none", "group"] = center
        self._api_key = api_key
        self._deadline_s = deadline_s

    async def __call__(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[str | Messages],
        *,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_columns: Any,
    ) -> list[float]:
        """One reward a completion.

        Raises:
            QuorumError: any of them cannot be had.
        """
        items = [_item(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        # A client a call: a call is a whole batch, and TRL's event loop is not ours to keep connections in.
        async with AsyncClient(
            self._url, api_key=self._api_key, deadline_s=self._deadline_s, max_retries=MAX_RETRIES
        ) as client:
            answer = await client.score(
                items,
                mode=self._mode,
                beta=self._beta,
                ensemble=self._ensemble,
                normalize=self._normalize,
                center=self._center,
            )
        rewards = scores_of(answer.results)
        for name, values in _columns_of(answer.results).items():
            if log_extra is not None:
                log_extra(f"{self.__name__}_{name}", values)
            if log_metric is not None:
                log_metric(f"{self.__name__}/{name}", sum(values) / len(values))
        return rewards


def _columns_of(results: Sequence[ScoreResult]) -> dict[str, list[float]]:
    """What is logged, a number a completion; without std where the ensemble has one member."""
    columns = {
        "mean": [result.mean for result in results if result.mean is not None],
        "std": [result.std for result in results if result.std is not None],
        "truncated": [float(result.truncated) for result in results],
    }
    return {name: values for name, values in columns.items() if values}


def _item(prompt: str | Messages, completion: str | Messages) -> dict[str, object]:
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion.strip():
            raise InvalidRequest("a completion is empty or blank: it has no reward")
        return {"text": prompt + completion, "prompt": prompt}
    if isinstance(prompt, str) or isinstance(completion, str):
        raise InvalidRequest("prompt and completion must both be text or both be messages")
    # Columns that hold messages have every field of any message in each of them, None where it has none.
    turns = [{name: value for name, value in turn.items() if value is not None} for turn in (*prompt, *completion)]
    if not completion or turns[-1].get("role") != "assistant":
        raise InvalidRequest("a completion must end with the assistant's message")
    unknown = sorted(set(turns[-1]) - {"role", "content"})
    if unknown:
        raise InvalidRequest(
            f"a completion's last message has {', '.join(unknown)}: its reward would be of less than it"
        )
    return {"prompt": turns[:-1], "response": turns[-1].get("content")}
