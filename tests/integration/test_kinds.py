"""The service over real weights of the kinds `singles` and `merged`: HTTP to numbers, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from quorum_client.types import ScoreRequest
from quorum_model.bundle.read import Bundle, read_bundle
from quorum_model.loading import load_member_scorer
from quorum_model.local import LocalScorer
from quorum_model.member_scorer import MemberScorer
from quorum_server.engine.messages import Loaded, Scores, TokenIds
from quorum_trainer.merge import merge_bundle
from tests.model.bundle.singles_bundle import make_singles_bundle
from tests.reference.tiny_models import ARCHITECTURES
from tests.server.conftest import serving
from tests.server.fake_engine import FakeEngine
from tests.server.tiny_bundle import make_bert_bundle

BODY = {"inputs": [{"prompt": "hello", "response": "fine thanks"}, {"prompt": "hello", "response": "no"}]}


class InProcessEngine(FakeEngine):
    """What the engine's child process does, without the process."""

    async def load(self, path: Path, *, device: str, dtype: str, token_budget: int | None) -> Loaded:
        self._scorer: MemberScorer = load_member_scorer(
            read_bundle(path), device=device, dtype=dtype, token_budget=token_budget
        )
        scorer = self._scorer
        return Loaded(
            0,
            scorer.version,
            scorer.num_members,
            scorer.device,
            scorer.dtype,
            str(scorer.attention),
            scorer.token_budget,
            scorer.shares_prefixes,
        )

    async def score(self, version: str, sequences: Sequence[TokenIds]) -> Scores:
        scores = self._scorer.score([sequence.tolist() for sequence in sequences])
        return Scores(0, scores.raw, scores.computed_tokens)


def make_bundle(kind: str, folder: Path) -> Bundle:
    if kind == "singles":
        return make_singles_bundle(folder / "singles", ARCHITECTURES[0], "first", num_members=3)
    return merge_bundle(make_bert_bundle(folder / "parent"), folder / "merged")


@pytest.mark.parametrize("kind", ["singles", "merged"])
async def test_the_service_gives_what_the_library_gives(kind: str, tmp_path: Path) -> None:
    bundle = make_bundle(kind, tmp_path)
    async with serving(bundle.path, InProcessEngine()) as service:
        answer = (await service.http.post("/score", json=BODY)).json()
        with_spread = await service.http.post("/score", json={**BODY, "mode": "lcb"})
        listed = (await service.http.get(f"/v1/ensembles/{bundle.manifest.name}")).json()
    expected = LocalScorer.open(str(bundle.path), device="cpu").score(ScoreRequest.model_validate(BODY)).results
    for got, wanted in zip(answer["results"], expected, strict=True):
        assert got["members"] == pytest.approx(wanted.members, abs=1e-5)  # fp32, the same passes
        assert (got["std"] is None) == (kind == "merged")
    assert answer["results"][0]["score"] != answer["results"][1]["score"]
    assert answer["ensemble"]["version"] == bundle.version
    assert listed["kind"] == kind
    if kind == "merged":
        assert with_spread.status_code == 422
        assert "at least 2 members" in with_spread.json()["error"]["message"]
    else:
        assert with_spread.status_code == 200
        assert with_spread.json()["results"][0]["score"] < answer["results"][0]["score"]
