"""A reward file for OpenRLHF: `--reward.remote_url /path/to/quorum_client/adapters/openrlhf.py`.

    queries  --reward_func-->  {"rewards", "scores", "extra_logs"} as tensors

OpenRLHF hands no options to such a file, so they are read from the environment, which under Ray is that of its workers:
QUORUM_URL, and where set QUORUM_MODE, QUORUM_BETA, QUORUM_ENSEMBLE and QUORUM_API_KEY. The server's /get_reward needs
no file; what this one adds is the client's patience with a server that restarts. Tested with OpenRLHF 0.11. Knows
nothing of training.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

from quorum_client.adapters import DEADLINE_S, MAX_RETRIES
from quorum_client.client import Client
from quorum_client.errors import InvalidRequest
from quorum_client.modes import MODES, Mode
from quorum_client.results import scores_of, sigmoid


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
    """Rewards of templated texts.

    Args:
        queries: prompt and response as the policy's tokenizer wrote them, special tokens and all.
        prompts: what each query begins with: it is cut first where the query is too long.
        labels: not used.

    Returns:
        `rewards` by the mode, `scores` those in 0..1 for dynamic filtering, `extra_logs` with mean, text_truncated
        (0 or 1) and, where there are members enough, std; float32 tensors of the queries' number.

    Raises:
        QuorumError: any of them cannot be had.
    """
    import torch

    items = [{"text": query, "prompt": prompt} for query, prompt in zip(queries, prompts, strict=True)]
    answer = _client().score(items, mode=_mode(), beta=_beta(), ensemble=os.environ.get("QUORUM_ENSEMBLE"))
    rewards = scores_of(answer.results)
    logs = {
        "mean": [result.mean for result in answer.results if result.mean is not None],
        "std": [result.std for result in answer.results if result.std is not None],
        "text_truncated": [float(result.truncated) for result in answer.results],
    }
    return {
        "rewards": torch.tensor(rewards),
        "scores": torch.tensor([sigmoid(reward) for reward in rewards]),
        "extra_logs": {name: torch.tensor(values) for name, values in logs.items() if values},
    }


@functools.cache
def _client() -> Client:
    # One for all of OpenRLHF's threads: it keeps its connections.
    url = os.environ.get("QUORUM_URL")
    if not url:
        raise InvalidRequest("QUORUM_URL is not set: the address of the Quorum server")
    api_key = os.environ.get("QUORUM_API_KEY")
    return Client(url, api_key=api_key, deadline_s=DEADLINE_S, max_retries=MAX_RETRIES)


def _mode() -> Mode | None:
    mode = os.environ.get("QUORUM_MODE")
    if mode is not None and mode not in MODES:
        raise InvalidRequest(f"QUORUM_MODE must be one of {', '.join(MODES)}")
    return mode


def _beta() -> float | None:
    beta = os.environ.get("QUORUM_BETA")
    try:
        return None if beta is None else float(beta)
    except ValueError as error:
        raise InvalidRequest("QUORUM_BETA must be a number") from error
