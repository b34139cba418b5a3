"""The half after the forward pass: raw member scores become responses.

    Prepared, raw (K, S)  --calibrate, centre, aggregate-->  response

Arithmetic is float64. A number that is not finite never leaves: it becomes the item's error, for the item as a whole,
and is kept out of its group's mean. Knows no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorum_client.errors import InternalError
from quorum_client.modes import aggregate
from quorum_client.types import (
    CompareListResponse,
    CompareResponse,
    Comparison,
    EnsembleRef,
    ItemError,
    Margin,
    RankResponse,
    ScoreResponse,
    ScoreResult,
    Usage,
)
from quorum_model.calibration import FloatArray, center_group, center_reference, normalize, pair_probability
from quorum_model.scoring.prepare import (
    Encoded,
    PreparedComparisons,
    PreparedRewards,
    ScoringContext,
    require_any,
)

_NON_FINITE = ItemError(code="non_finite_score", message="the ensemble's score of this item is not a finite number")
_GROUP_TOO_SMALL = ItemError(
    code="group_too_small", message="no other item of this prompt could be scored: there is no group to centre by"
)

RawScores = NDArray[np.floating[Any]]


def finish_score(
    context: ScoringContext, prepared: PreparedRewards, raw: RawScores, *, computed_tokens: int, response_id: str
) -> ScoreResponse:
    """Answer a /score request.

    Args:
        context: the one it was prepared with.
        prepared: see `prepare_score`.
        raw: the members' scores of `prepared.sequences`, before calibration, shape (K, S).
        computed_tokens: tokens that the engine computed for them.
        response_id: the answer's `id`.
    """
    return ScoreResponse(
        id=response_id,
        ensemble=_ensemble_of(context),
        mode=prepared.rule.mode,
        beta=prepared.rule.beta,
        center=prepared.rule.center,
        results=_results(context, prepared, raw),
        usage=Usage(prompt_tokens=prepared.prompt_tokens, computed_tokens=computed_tokens),
    )


def finish_rank(
    context: ScoringContext, prepared: PreparedRewards, raw: RawScores, *, computed_tokens: int, response_id: str
) -> RankResponse:
    """Answer a /rank request; arguments as in `finish_score`. Ties keep the order of the request.

    Raises:
        InvalidRequest: no candidate has a score, so that none is best.
        InternalError: likewise, for a raw score that is not finite.
    """
    if prepared.may_stay_uncentred and _is_usable(_columns(context, prepared.items, raw)).sum() < 2:
        prepared = replace(prepared, rule=replace(prepared.rule, center="none"))
    results = _results(context, prepared, raw)
    _require_any([result.error for result in results], raw)
    scored = [index for index, result in enumerate(results) if result.score is not None]
    failed = [index for index, result in enumerate(results) if result.score is None]
    order = [*sorted(scored, key=lambda index: -(results[index].score or 0.0)), *failed]
    return RankResponse(
        id=response_id,
        ensemble=_ensemble_of(context),
        mode=prepared.rule.mode,
        beta=prepared.rule.beta,
        center=prepared.rule.center,
        best=order[0],
        order=order,
        results=results,
        usage=Usage(prompt_tokens=prepared.prompt_tokens, computed_tokens=computed_tokens),
    )


def finish_compare(
    context: ScoringContext, prepared: PreparedComparisons, raw: RawScores, *, computed_tokens: int, response_id: str
) -> CompareResponse | CompareListResponse:
    """Answer a /compare request; arguments as in `finish_score`.

    Raises:
        InvalidRequest: the one inline pair has no score.
        InternalError: likewise, for a raw score that is not finite.
    """
    results = _comparisons(context, prepared, raw)
    ensemble = _ensemble_of(context)
    usage = Usage(prompt_tokens=prepared.prompt_tokens, computed_tokens=computed_tokens)
    if prepared.is_list:
        return CompareListResponse(id=response_id, ensemble=ensemble, results=results, usage=usage)
    _require_any([results[0].error], raw)
    return CompareResponse(
        id=response_id,
        ensemble=ensemble,
        usage=usage,
        probability=results[0].probability,
        margin=results[0].margin,
        members=results[0].members,
        truncated=results[0].truncated,
    )


def _require_any(errors: Sequence[ItemError | None], raw: RawScores) -> None:
    """Fail the request where no item is left: as its first item did, or as a defect where the engine's numbers are one.

    Raises:
        InvalidRequest, InternalError: see there.
    """
    is_failed = any(error is not None and error.code == "scoring_failed" for error in errors)
    if all(errors) and not is_failed and not np.isfinite(raw).all():
        raise InternalError("no item has a score: the ensemble's raw scores are not finite numbers")
    require_any(errors)


def _ensemble_of(context: ScoringContext) -> EnsembleRef:
    return EnsembleRef(name=context.manifest.name, version=context.version)


def _results(context: ScoringContext, prepared: PreparedRewards, raw: RawScores) -> list[ScoreResult]:
    rule = prepared.rule
    members = _columns(context, prepared.items, raw)
    if rule.normalize:
        members = _calibrate(context, members)
    alone = np.zeros(members.shape[1], dtype=np.bool_)
    if rule.center == "group":
        members, alone = center_group(members, prepared.groups)
    elif rule.center == "reference":
        references = _columns(context, prepared.references, raw)
        members = center_reference(members, _calibrate(context, references) if rule.normalize else references)
    usable = np.flatnonzero(_is_usable(members))
    scores = np.full(members.shape[1], np.nan)
    with np.errstate(over="ignore", invalid="ignore"):  # an absurd beta: caught below as not finite
        scores[usable] = aggregate(members[:, usable], rule.mode, rule.beta)
    return [
        _result(item, members[:, index], float(scores[index]), is_alone=bool(alone[index]))
        for index, item in enumerate(prepared.items)
    ]


def _result(item: Encoded, members: FloatArray, score: float, *, is_alone: bool) -> ScoreResult:
    error = item.error or (_GROUP_TOO_SMALL if is_alone else None if np.isfinite(score) else _NON_FINITE)
    if error is not None:
        return ScoreResult(num_tokens=item.num_tokens, truncated=item.truncated, error=error)
    return ScoreResult(
        score=score,
        mean=float(members.mean()),
        std=float(members.std(ddof=1)) if len(members) > 1 else None,
        members=members.tolist(),
        num_tokens=item.num_tokens,
        truncated=item.truncated,
    )


def _comparisons(context: ScoringContext, prepared: PreparedComparisons, raw: RawScores) -> list[Comparison]:
    sides = [_calibrate(context, _columns(context, [pair[side] for pair in prepared.pairs], raw)) for side in (0, 1)]
    margins = sides[0] - sides[1]
    probabilities = pair_probability(context.manifest.pair_temperature, margins)
    results = []
    for index, (a, b) in enumerate(prepared.pairs):
        own, truncated = margins[:, index], a.truncated or b.truncated
        error = a.error or b.error or (None if np.isfinite(own).all() else _NON_FINITE)
        if error is not None:
            results.append(Comparison(truncated=truncated, error=error))
            continue
        std = float(own.std(ddof=1)) if len(own) > 1 else None
        results.append(
            Comparison(
                probability=float(probabilities[index]),
                margin=Margin(mean=float(own.mean()), std=std),
                members=own.tolist(),
                truncated=truncated,
            )
        )
    return results


def _columns(context: ScoringContext, texts: list[Encoded], raw: RawScores) -> FloatArray:
    """The scores of each text, shape (K, len(texts)).

    NaN where a text has none, or where any member's is not finite: what follows meets no infinity.
    """
    num_members = len(context.manifest.members)
    columns = [text.column for text in texts]
    if raw.ndim != 2 or raw.shape[0] != num_members or max(c or 0 for c in columns) >= raw.shape[1]:
        raise InternalError(
            f"raw scores have shape {raw.shape}, which fits neither {num_members} members nor the texts"
        )
    scores = np.full((num_members, len(texts)), np.nan)
    known = [index for index, column in enumerate(columns) if column is not None]
    scores[:, known] = raw[:, [column for column in columns if column is not None]]
    scores[:, ~_is_usable(scores)] = np.nan
    return scores


def _calibrate(context: ScoringContext, scores: FloatArray) -> FloatArray:
    calibrations = [member.calibration for member in context.manifest.members]
    return normalize(scores, [c.mean for c in calibrations], [c.scale for c in calibrations])


def _is_usable(scores: FloatArray) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(scores).all(axis=0))
