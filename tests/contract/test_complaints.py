"""What users of other reward servers complain of, each as a test that a naive server fails.

Each property is asked of a real Quorum server and of a naive one: a scorer as one would write it in twenty lines.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import safetensors.numpy
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from quorum_client.adapters import openrlhf, verl
from quorum_client.adapters.trl import RemoteReward
from quorum_client.errors import QuorumError
from quorum_model.bundle.read import read_bundle
from quorum_model.errors import BundleError
from quorum_model.local import LocalScorer
from tests.integration.server_process import REAL_ENGINE, server
from tests.model.bundle.small_bundle import forge
from tests.server.tiny_bundle import make_llama_bundle

TEXT = "Human: What is 2+2?\n\nAssistant: It is four."
LONG = "Human: What is 2+2?\n\nAssistant: " + "Why would I know? " * 2
BOS, EOS = "[CLS]", "[SEP]"

# Other sums in float32 (unit 6e-8) on scores of order 1; what the naive server gets wrong is a thousand times as much.
TOLERANCE = 1e-4

Score = Callable[[list[str]], list[float]]


class NaiveServer:
    """The members of a bundle by Transformers and PEFT, with the usual mistakes."""

    def __init__(self, bundle: Path) -> None:
        folders = sorted((bundle / "members").iterdir())
        backbone = str(bundle / "backbone")
        self._tokenizer = AutoTokenizer.from_pretrained(backbone, padding_side="left")
        self._models = [
            PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(backbone), str(folder)).eval()
            for folder in folders
        ]

    def __call__(self, texts: list[str]) -> list[float]:
        ids = self._tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            members = [self._last_token_scores(model.base_model.model, ids) for model in self._models]
        return torch.stack(members).mean(dim=0).tolist()

    @staticmethod
    def _last_token_scores(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return model.score(model.model(ids).last_hidden_state[:, -1]).squeeze(-1).float()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


@pytest.fixture(scope="module")
def naive(bundle: Path) -> NaiveServer:
    return NaiveServer(bundle)


@pytest.fixture(scope="module")
def url(bundle: Path) -> Iterator[str]:
    with server(REAL_ENGINE, bundle) as process:
        yield process.url


@pytest.fixture(scope="module")
def quorum(url: str) -> Iterator[Score]:
    with httpx.Client(base_url=url, timeout=60) as http:
        yield lambda texts: http.post("/get_reward", json={"query": texts}).raise_for_status().json()["rewards"]


def close(a: list[float], b: list[float]) -> bool:
    return bool(np.allclose(a, b, rtol=0, atol=TOLERANCE))


def members_alone(bundle: Path, text: str) -> np.ndarray:
    """Raw scores (K,): PEFT, one member and one unpadded text at a time, BOS and EOS once."""
    naive = NaiveServer(bundle)
    ids = naive._tokenizer(text, return_tensors="pt")["input_ids"]  # this tokenizer writes both
    with torch.inference_mode():
        return np.array([float(naive._last_token_scores(model.base_model.model, ids)) for model in naive._models])


def has_one_bos(score: Score) -> bool:
    """Text that brings its BOS, as a chat template writes it, and text that does not, are the same text."""
    return close(score([BOS + TEXT]), score([TEXT]))


def test_double_bos(quorum: Score, naive: Score) -> None:
    assert has_one_bos(quorum)
    assert not has_one_bos(naive)


def ignores_companions(score: Score) -> bool:
    """A text's score is the same alone and beside a longer one."""
    return close(score([TEXT]), score([TEXT, LONG])[:1])


def test_padding(quorum: Score, naive: Score) -> None:
    assert ignores_companions(quorum)
    assert not ignores_companions(naive)


def is_normalised(score: Score, bundle: Path) -> bool:
    """The reward is the mean of calibrated members, by their own means and scales in the bundle."""
    calibrations = [member.calibration for member in read_bundle(bundle).manifest.members]
    raw = members_alone(bundle, TEXT)
    expected = np.mean([(r - c.mean) / c.scale for r, c in zip(raw, calibrations, strict=True)])
    return close(score([TEXT]), [float(expected)])


def test_missing_normalisation(quorum: Score, naive: Score, bundle: Path) -> None:
    assert is_normalised(quorum, bundle)
    assert not is_normalised(naive, bundle)


def refuses_a_lost_head(load: Callable[[Path], object], bundle: Path, folder: Path) -> bool:
    """An adapter that was saved without its trained head is not served with another one."""
    broken = folder / "broken"
    shutil.copytree(bundle, broken)
    weights = broken / "members" / "m01" / "adapter_model.safetensors"
    tensors = {name: tensor for name, tensor in safetensors.numpy.load_file(weights).items() if "score" not in name}
    safetensors.numpy.save_file(tensors, weights)
    config = broken / "members" / "m01" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"modules_to_save": None, "task_type": None}))
    forge(broken)  # the hashes are right: it was saved like this
    try:
        load(broken)
    except BundleError as error:
        return "m01" in str(error)
    return False


def test_lost_heads(bundle: Path, tmp_path: Path) -> None:
    assert refuses_a_lost_head(lambda path: LocalScorer.open(str(path)), bundle, tmp_path / "quorum")
    assert not refuses_a_lost_head(lambda path: NaiveServer(path)([TEXT]), bundle, tmp_path / "naive")


def raises_where_the_server_is_away(reward: Callable[[], object]) -> bool:
    """A reward that cannot be had is no number."""
    try:
        reward()
    except QuorumError:
        return True
    return False


NOWHERE = "http://127.0.0.1:9"


def naive_reward() -> float:
    try:
        return float(httpx.post(NOWHERE, timeout=1).json()["reward"])
    except Exception:
        return 0.0


def test_silent_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORUM_URL", NOWHERE)
    monkeypatch.setattr(openrlhf, "DEADLINE_S", 0.5)
    openrlhf._client.cache_clear()
    function = verl.compute_score("d", "s", "g", {"prompt": "p"}, url=NOWHERE, deadline_s=0.5)
    assert raises_where_the_server_is_away(lambda: openrlhf.reward_func(["a"], ["a"], [None]))
    assert raises_where_the_server_is_away(lambda: asyncio.run(function))
    assert raises_where_the_server_is_away(lambda: asyncio.run(RemoteReward(NOWHERE, deadline_s=0.5)(["a"], ["b"])))
    assert not raises_where_the_server_is_away(naive_reward)


def equals_the_trainers(score: Score, bundle: Path) -> bool:
    """Raw scores are those of Transformers and PEFT, a text and a member at a time."""
    return close(score([TEXT, LONG]), [float(members_alone(bundle, text).mean()) for text in (TEXT, LONG)])


@pytest.mark.parametrize("path", ["/sglang/v1/embeddings", "/sglang/classify", "/vllm/classify", "/get_reward"])
def test_rewards_are_the_trainers_own(url: str, naive: Score, bundle: Path, path: str) -> None:
    def ask(texts: list[str]) -> list[float]:
        body = {"query": texts, "input": texts, "text": texts, "use_activation": False}  # each takes what it knows
        answer = httpx.post(f"{url}{path}?normalize=false&mode=mean", json=body, timeout=60).raise_for_status().json()
        if path == "/get_reward":
            return list(answer["rewards"])
        entries = answer if isinstance(answer, list) else answer["data"]
        return [float((entry.get("embedding") or entry.get("probs"))[0]) for entry in entries]

    assert equals_the_trainers(ask, bundle)
    assert not equals_the_trainers(naive, bundle)


def tells_texts_apart(score: Score) -> bool:
    """A model of one label is not put through a softmax, of which 1 is the only value."""
    return len(set(score([TEXT, LONG]))) == 2


def test_softmax_of_one_label(quorum: Score, naive: Score) -> None:
    assert tells_texts_apart(quorum)
    assert not tells_texts_apart(lambda texts: torch.softmax(torch.tensor([naive(texts)]).T, dim=-1).flatten().tolist())
