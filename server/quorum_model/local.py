"""A bundle in this process: requests in, responses out, without a server.

    ScoreRequest  --prepare-->  sequences  --MemberScorer-->  raw (K, S)  --finish-->  ScoreResponse

The same pure halves and the same forward pass as the server's, so the numbers are the same. Knows no HTTP.
"""

from __future__ import annotations

import uuid

from quorum_client.errors import EnsembleNotFound
from quorum_client.types import (
    CompareListResponse,
    CompareRequest,
    CompareResponse,
    RankRequest,
    RankResponse,
    ScoreRequest,
    ScoreResponse,
    ScoringOptions,
)
from quorum_model.bundle.read import read_bundle, resolve_bundle
from quorum_model.loading import load_member_scorer
from quorum_model.member_scorer import MemberScorer
from quorum_model.prompts import load_prompt_encoder
from quorum_model.scoring import (
    ScoringContext,
    finish_compare,
    finish_rank,
    finish_score,
    prepare_compare,
    prepare_rank,
    prepare_score,
)


class LocalScorer:
    """Scores with a bundle in this process.

    Example:
        scorer = LocalScorer.open("default")
        scorer.rank(RankRequest(prompt="Hi", candidates=["Hello!", "Go away."])).best
    """

    def __init__(self, context: ScoringContext, scorer: MemberScorer) -> None:
        self.context = context
        self.scorer = scorer

    @classmethod
    def open(cls, source: str, *, device: str = "auto", dtype: str = "auto") -> LocalScorer:
        """Load a bundle.

        Args:
            source: a folder, a hub id, or "default".
            device: auto, cpu, cuda, cuda:N.
            dtype: auto, float32, bfloat16, float64.

        Raises:
            BundleError: the bundle cannot be used, and why.
        """
        bundle = read_bundle(resolve_bundle(source))
        context = ScoringContext(bundle.manifest, bundle.version, load_prompt_encoder(bundle))
        return cls(context, load_member_scorer(bundle, device=device, dtype=dtype))

    def score(self, request: ScoreRequest) -> ScoreResponse:
        """As POST /score."""
        self._check_ensemble(request)
        prepared = prepare_score(self.context, request)
        scores = self.scorer.score(prepared.sequences)
        return finish_score(
            self.context, prepared, scores.raw, computed_tokens=scores.computed_tokens, response_id=_new_id()
        )

    def rank(self, request: RankRequest) -> RankResponse:
        """As POST /rank."""
        self._check_ensemble(request)
        prepared = prepare_rank(self.context, request)
        scores = self.scorer.score(prepared.sequences)
        return finish_rank(
            self.context, prepared, scores.raw, computed_tokens=scores.computed_tokens, response_id=_new_id()
        )

    def compare(self, request: CompareRequest) -> CompareResponse | CompareListResponse:
        """As POST /compare."""
        self._check_ensemble(request)
        prepared = prepare_compare(self.context, request)
        scores = self.scorer.score(prepared.sequences)
        return finish_compare(
            self.context, prepared, scores.raw, computed_tokens=scores.computed_tokens, response_id=_new_id()
        )

    def _check_ensemble(self, request: ScoringOptions) -> None:
        name = self.context.manifest.name
        if request.ensemble not in (None, name, f"{name}@{self.context.version}"):
            raise EnsembleNotFound(f"this scorer holds {name}@{self.context.version} and no other ensemble")


def _new_id() -> str:
    return f"local-{uuid.uuid4().hex}"
