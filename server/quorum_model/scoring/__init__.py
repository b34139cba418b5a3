"""The pure halves around the forward pass, shared by server and local scoring, so that they give the same numbers.

    request  --prepare-->  Prepared.sequences  --engine-->  raw (K, S)  --finish-->  response

Shapes: `K` members, `S` distinct sequences, `N` items. Knows no HTTP, no event loop and no torch.

What is wrong with a request as a whole raises (422); what is wrong with one item becomes that item's `error`, and its
neighbours are scored. Where no item can be scored at all, the request fails as its first item did.
"""

from quorum_model.scoring.finish import finish_compare, finish_rank, finish_score
from quorum_model.scoring.prepare import (
    Encoded,
    Prepared,
    PreparedComparisons,
    PreparedRewards,
    Rule,
    ScoringContext,
    mark_failed,
    prepare_compare,
    prepare_rank,
    prepare_score,
)

__all__ = [
    "ScoringContext",
    "prepare_score",
    "prepare_rank",
    "prepare_compare",
    "mark_failed",
    "finish_score",
    "finish_rank",
    "finish_compare",
    "Prepared",
    "PreparedRewards",
    "PreparedComparisons",
    "Encoded",
    "Rule",
]
