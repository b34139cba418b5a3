"""verl's two ways to a reward of one's own: a score function, and a reward manager.

    reward.custom_reward_function  -->  compute_score(...)            the prompt from extra_info
    reward.reward_manager          -->  QuorumRewardManager(...)      the prompt from raw_prompt

Both answer with the same dictionary. verl sends one sample at a time; the server puts them together again.
Tested with verl 0.9. Knows nothing of training.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from quorum_client.adapters import DEADLINE_S, MAX_RETRIES
from quorum_client.async_client import AsyncClient
from quorum_client.errors import InvalidRequest
from quorum_client.modes import Mode
from quorum_client.results import scores_of

_Address = tuple[str, str | None, float]

_OPTIONS = frozenset({"url", "mode", "beta", "ensemble", "api_key", "deadline_s"})

# Connections belong to an event loop; verl's workers have one each, for as long as they live.
_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Address, AsyncClient]] = WeakKeyDictionary()


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str,
    mode: Mode | None = None,
    beta: float | None = None,
    ensemble: str | None = None,
    api_key: str | None = None,
    deadline_s: float = DEADLINE_S,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, float]:
    """The reward of one response. What is keyword-only comes from `reward.custom_reward_function.reward_kwargs`.

    Args:
        data_source: not used.
        solution_str: the response, without special tokens.
        ground_truth: not used.
        extra_info: its `prompt` is the prompt, as text or messages: verl hands it on in no other way.
        url: the server's address.
        mode: how members become a reward; the ensemble's default if None.
        beta: of the mode.
        ensemble: name or name@version; the only one loaded if None.
        api_key: sent as a bearer token.
        deadline_s: how long to wait, the server's restarts and overload included.
        reward_router_address: not used; verl hands it on where it serves a reward model itself.
        reward_model_tokenizer: likewise.

    Returns:
        `score`, and for the log `mean`, `std` (not where the ensemble has one member) and `truncated`.

    Raises:
        QuorumError: the reward cannot be had.
    """
    prompt = (extra_info or {}).get("prompt")
    if prompt is None:
        raise InvalidRequest("extra_info has no 'prompt': the reward of a response depends on its prompt")
    client = _client_of_this_loop((url, api_key, deadline_s))
    item = {"prompt": prompt if isinstance(prompt, str) else _messages(prompt), "response": solution_str}
    answer = await client.score([item], mode=mode, beta=beta, ensemble=ensemble)
    (score,) = scores_of(answer.results)
    (result,) = answer.results
    logged = {"mean": result.mean, "std": result.std, "truncated": float(result.truncated)}
    return {"score": score, **{name: value for name, value in logged.items() if value is not None}}


def _messages(turns: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as plain dictionaries: tables hold them as arrays, with None in every field that any message has."""
    return [{name: value for name, value in turn.items() if value is not None} for turn in turns]


def _client_of_this_loop(address: _Address) -> AsyncClient:
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    if address not in clients:
        url, api_key, deadline_s = address
        clients[address] = AsyncClient(url, api_key=api_key, deadline_s=deadline_s, max_retries=MAX_RETRIES)
    return clients[address]


class QuorumRewardManager:
    """A reward manager for `reward.reward_manager.source=importlib`.

    Takes from `reward.reward_kwargs` what `compute_score` takes as keywords; `url` is required.

    Args:
        config: verl's.
        tokenizer: the policy's; decodes responses.
        compute_score: not used.
        reward_router_address: not used.
        reward_model_tokenizer: not used.

    Raises:
        InvalidRequest: there is no `url`, or an option that there is not.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._options: dict[str, Any] = dict(config.reward.get("reward_kwargs") or {})
        if "url" not in self._options:
            raise InvalidRequest("reward.reward_kwargs.url is not set: the address of the Quorum server")
        unknown = sorted(set(self._options) - _OPTIONS)
        if unknown:
            raise InvalidRequest(
                f"reward.reward_kwargs has no {', '.join(unknown)}; it has {', '.join(sorted(_OPTIONS))}"
            )

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: list[float]) -> Any:
        """verl's own: each score at its response's last token."""
        from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

        return RewardManagerBase.assemble_rm_scores(data, scores)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The reward of one sample; of a sample of several sequences, that of the last.

        Args:
            data: a DataProto with `responses`, `attention_mask` and `raw_prompt`.

        Raises:
            QuorumError: the reward cannot be had.
        """
        item = data[-1:][0]
        response_ids = item.batch["responses"]
        num_valid = int(item.batch["attention_mask"][-response_ids.shape[-1] :].sum())
        decode = self._tokenizer.decode
        response = await asyncio.to_thread(decode, response_ids[:num_valid], skip_special_tokens=True)
        result = await compute_score(
            "", response, None, {"prompt": item.non_tensor_batch["raw_prompt"]}, **self._options
        )
        return {"reward_score": result["score"], "reward_extra_info": result}
