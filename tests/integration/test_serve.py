"""`quorum serve` as a user meets it: real process, real socket, real engine child.

The numbers come from a tiny random BERT and are compared with the library's in this process.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import safetensors.numpy

from quorum_client.async_client import AsyncClient
from quorum_client.client import Client
from quorum_client.errors import EnsembleNotFound, InvalidRequest
from quorum_client.types import CompareRequest, RankRequest, ScoreRequest, ScoreResponse
from quorum_model.local import LocalScorer
from tests.integration.server_process import REAL_ENGINE, ServerProcess, end, popen, server
from tests.model.bundle.small_bundle import forge
from tests.server.tiny_bundle import make_bert_bundle, make_fake_bundle

PROMPT = "What is 2+2?"
TEXTS = ["4", "It is four.", "Five!", "Why would I know?", "2+2 = 4, as one can count on the fingers of a hand."]

# Other batch companions, so other summation order; the scores are of order 1. fp32 has 2^-24 = 6e-8 relative.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path


@pytest.fixture(scope="module")
def running(bundle: Path) -> Iterator[ServerProcess]:
    with server(REAL_ENGINE, bundle) as process:
        yield process


@pytest.fixture(scope="module")
def library(bundle: Path) -> LocalScorer:
    return LocalScorer.open(str(bundle))


def test_server_equals_library(running: ServerProcess, library: LocalScorer) -> None:
    inputs = [{"prompt": PROMPT, "response": text} for text in TEXTS]
    with Client(running.url) as client:
        for mode in ("mean", "lcb", "uwo", "softmin", "min", "median"):
            served = client.score(inputs, mode=mode)
            local = library.score(ScoreRequest.model_validate({"inputs": inputs, "mode": mode}))
            assert served.ensemble == local.ensemble
            assert served.usage.prompt_tokens == local.usage.prompt_tokens
            for here, there in zip(local.results, served.results, strict=True):
                assert there.score == pytest.approx(here.score, abs=TOLERANCE)
                assert there.members == pytest.approx(here.members, abs=TOLERANCE)
                assert there.std == pytest.approx(here.std, abs=TOLERANCE)
        spread = [result.std for result in served.results]
        assert min(spread) > 100 * TOLERANCE  # the members do differ, so equal numbers mean equal members

        ranked = client.rank(PROMPT, TEXTS)
        local_rank = library.rank(RankRequest(prompt=PROMPT, candidates=TEXTS))
        assert (ranked.best, ranked.order) == (local_rank.best, local_rank.order)
        compared = client.compare(PROMPT, TEXTS[0], TEXTS[2])
        local_comparison = library.compare(CompareRequest(prompt=PROMPT, a=TEXTS[0], b=TEXTS[2]))
        assert compared.probability == pytest.approx(local_comparison.probability, abs=TOLERANCE)


async def test_many_clients_at_once_each_get_their_own_scores(running: ServerProcess, library: LocalScorer) -> None:
    texts = [f"{text} {number}" for number in range(8) for text in TEXTS]
    inputs = [[{"prompt": PROMPT, "response": text}] for text in texts]
    async with AsyncClient(running.url) as client:
        answers = await asyncio.gather(*(client.score(one) for one in inputs))
    local = library.score(ScoreRequest.model_validate({"inputs": [item for one in inputs for item in one]}))
    for answer, expected in zip(answers, local.results, strict=True):
        assert answer.results[0].members == pytest.approx(expected.members, abs=TOLERANCE)


def test_the_clients_see_what_is_loaded_and_typed_errors(running: ServerProcess, library: LocalScorer) -> None:
    with Client(running.url) as client:
        assert client.is_ready()
        (info,) = client.ensembles()
        assert (info.name, info.version, info.attention) == ("tiny", library.context.version, "packed")
        with pytest.raises(EnsembleNotFound):
            client.score([{"text": "a"}], ensemble="other")
        with pytest.raises(InvalidRequest):
            client.score([{"text": " "}])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_curl_line_works_as_it_stands(running: ServerProcess) -> None:
    reply = subprocess.run(running.curl, shell=True, capture_output=True, text=True, check=True)
    answer = ScoreResponse.model_validate_json(reply.stdout)
    assert [result.error for result in answer.results] == [None, None]


def test_a_10_mb_prompt_is_refused_over_the_wire_and_the_connection_lives_on(running: ServerProcess) -> None:
    with httpx.Client(base_url=running.url) as http:
        body = json.dumps({"inputs": [{"prompt": "a" * 10_000_000, "response": "b"}]})
        refused = http.post("/score", content=body)
        assert refused.status_code == 413
        assert refused.json()["error"]["code"] == "request_too_large"
        assert http.get("/healthz").status_code == 200


def make_changed(folder: Path) -> Path:
    bundle = make_bert_bundle(folder).path
    weights = bundle / "members" / "m01" / "adapter_model.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    return bundle


def make_future(folder: Path) -> Path:
    bundle = make_fake_bundle(folder).path
    forge(bundle, lambda manifest: manifest.update(schema_version=99))
    return bundle


def make_pickle(folder: Path) -> Path:
    bundle = make_fake_bundle(folder).path
    (bundle / "heads.safetensors").write_bytes(pickle.dumps({"m00.weight": [0.0]}))
    forge(bundle)
    return bundle


def make_headless(folder: Path) -> Path:
    bundle = make_fake_bundle(folder).path
    heads = safetensors.numpy.load_file(bundle / "heads.safetensors")
    del heads["m01.weight"]
    safetensors.numpy.save_file(heads, bundle / "heads.safetensors")
    forge(bundle)
    return bundle


def make_other_backbone(folder: Path) -> Path:
    """The one damage here that only the engine sees."""
    bundle = make_bert_bundle(folder).path
    forge(bundle, lambda manifest: manifest["backbone"].update(weights_sha256="0" * 64))
    return bundle


@pytest.mark.parametrize(
    ("make", "code", "named"),
    [
        (make_changed, "bundle_corrupt", "m01"),
        (make_future, "bundle_from_future", "99"),
        (make_pickle, "bundle_corrupt", "heads.safetensors"),
        (make_headless, "head_missing", "m01"),
        (make_other_backbone, "backbone_mismatch", "0000"),
    ],
)
def test_a_broken_bundle_ends_the_command_with_its_error(
    tmp_path: Path, make: Callable[[Path], Path], code: str, named: str
) -> None:
    process = popen(REAL_ENGINE, make(tmp_path / "broken"))
    out, err = process.communicate()
    end(process)
    assert process.returncode == 1
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {code}: ")
    assert named in line
    assert "Traceback" not in err


def test_an_address_that_is_taken_ends_the_command(running: ServerProcess, bundle: Path) -> None:
    process = popen(REAL_ENGINE, bundle, port=int(running.url.rpartition(":")[2]))
    out, err = process.communicate()
    assert process.returncode == 1
    assert out == ""
    assert "error: cannot listen on 127.0.0.1:" in err
    end(process)
