"""The answers of `quorum score`: one batch's results, with where they come from, whether or not it could be scored.

    items  --score_parts (one request, or one an item where refused)-->  [ScoredPart]  --OriginWatch.check-->  same

A server refuses a request in which no item can be scored. Here that is no failure: every item gets its own error, so
that the result does not depend on how lines fall into batches. Knows no lines and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quorum_client.errors import InvalidRequest, QuorumError
from quorum_client.types import Center, ItemError, ScoreItem, ScoreResponse, ScoreResult

ITEM_CODES = frozenset({"empty_text", "too_long", "token_id_out_of_range", "invalid_unicode", "dialogue_refused"})
"""What is wrong with a single item, and no fault of the request around it."""

_ANSWERED = ("ensemble", "mode", "beta")

AskedFor = Mapping[str, object]
Ask = Callable[[list[ScoreItem], Center], ScoreResponse]


class OriginChanged(InvalidRequest):
    """Scores of one run would come from two versions or two ways of scoring; nothing of the second is written."""

    code = "origin_changed"


@dataclass(frozen=True, slots=True)
class ScoredPart:
    """Results of neighbouring items. origin: where they come from; its ensemble is null where all were refused."""

    results: list[ScoreResult]
    origin: dict[str, object]


def score_parts(items: list[ScoreItem], ask: Ask, center: Center, asked_for: AskedFor) -> list[ScoredPart]:
    """Score one batch.

    Args:
        items: what to score; a group-centred run of one prompt is whole.
        ask: one request; raises `QuorumError`.
        center: what the scores are relative to.
        asked_for: options that belong to the origin though no answer repeats them.

    Returns:
        One part, or one for every item of a batch that was refused for its items.

    Raises:
        QuorumError: the request failed for another reason than its items.
    """
    try:
        return [_answered(ask(items, center), asked_for)]
    except QuorumError as error:
        if error.code not in ITEM_CODES:
            raise
        if len(items) == 1:
            return [_refused(error, center, asked_for)]
        if center != "group":
            return [part for item in items for part in score_parts([item], ask, center, asked_for)]
        return [_refused(_error_of(item, ask, error), center, asked_for) for item in items]


def _error_of(item: ScoreItem, ask: Ask, batch_error: QuorumError) -> QuorumError:
    """Why an item of a refused group has no score, asked without centring: one item is no group."""
    try:
        ask([item], "none")
    except QuorumError as error:
        if error.code not in ITEM_CODES:
            raise
        return error
    raise batch_error  # an item that can be scored, in a group that was refused: no result to be had from this


def _answered(answer: ScoreResponse, asked_for: AskedFor) -> ScoredPart:
    return ScoredPart(answer.results, {**answer.model_dump(include={*_ANSWERED, "center"}), **asked_for})


def _refused(error: QuorumError, center: Center, asked_for: AskedFor) -> ScoredPart:
    result = ScoreResult(error=ItemError(code=error.code, message=error.message))
    return ScoredPart([result], {**dict.fromkeys(_ANSWERED), "center": center, **asked_for})


def differing(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """The names in which two origins differ; what only an answer says is left out where one of them is no answer."""
    both_answered = before.get("ensemble") is not None and now.get("ensemble") is not None
    names = [name for name in now if both_answered or name not in _ANSWERED]
    return [name for name in names if name not in before or before[name] != now[name]]


class OriginWatch:
    """Holds a run to the origin of its first answer."""

    def __init__(self) -> None:
        self._origin: dict[str, object] | None = None

    def check(self, parts: Sequence[ScoredPart]) -> None:
        """Take the first answer's origin, and refuse parts with another.

        Raises:
            OriginChanged: names what was and what is.
        """
        for part in parts:
            if part.origin["ensemble"] is None:
                continue
            if self._origin is None:
                self._origin = part.origin
            names = differing(self._origin, part.origin)
            if names:
                before, now = ({name: origin.get(name) for name in names} for origin in (self._origin, part.origin))
                raise OriginChanged(f"this run began with {before}, and the next answer has {now}; it is not written")
