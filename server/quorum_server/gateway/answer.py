"""The gateway's answers: a generator's, with the best of its choices, what they scored, and how that came about.

    Plan, Candidates, RankResponse  --make_answer-->  a body in OpenAI's shape  --as_events-->  server-sent events

Pure.
"""

from __future__ import annotations

import json
from typing import Any

from quorum_client.types import RankResponse, ScoreResult
from quorum_server.gateway.plan import Candidates, Plan

_NOT_TEXT = {"code": "not_text", "message": "the candidate calls a tool; only text can be ranked"}


def make_answer(plan: Plan, candidates: Candidates, ranked: RankResponse) -> dict[str, Any]:
    """The generator's answer with the best choices alone, in order of rank; usage is of all candidates.

    Each choice has a `quorum` object of its own: index (which candidate), rank (1 is the best), score, mean, std,
    members, num_tokens, truncated. The answer's own says what ranked, `failed` lists candidates without a score, and
    `candidates` (where asked for) all of them. Where fewer have a score than were asked for, fewer are returned.
    """
    places = [index for index, text in enumerate(candidates.texts) if text is not None]
    results: dict[int, ScoreResult] = dict(zip(places, ranked.results, strict=True))
    usable = [places[place] for place in ranked.order if ranked.results[place].error is None]
    ranks = {index: rank for rank, index in enumerate(usable, start=1)}
    about = [_about(index, results.get(index), ranks.get(index)) for index in range(plan.num_candidates)]
    returned = usable[: plan.num_choices]
    choices = [
        {**candidates.choices[index], "index": place, "quorum": about[index]} for place, index in enumerate(returned)
    ]
    said: dict[str, Any] = {
        "ensemble": ranked.ensemble.model_dump(),
        "mode": ranked.mode,
        "beta": ranked.beta,
        "center": ranked.center,
        "num_candidates": plan.num_candidates,
        "failed": [one for one in about if "error" in one],
        "usage": ranked.usage.model_dump(),
    }
    if plan.options.return_candidates:
        said["candidates"] = [
            {**own, "finish_reason": choice.get("finish_reason"), "text": text}
            for own, choice, text in zip(about, candidates.choices, candidates.texts, strict=True)
        ]
    return {**candidates.reply, "choices": choices, "quorum": said}


def _about(index: int, result: ScoreResult | None, rank: int | None) -> dict[str, Any]:
    if result is None:
        return {"index": index, "error": _NOT_TEXT}
    if result.error is not None:
        return {"index": index, "error": result.error.model_dump()}
    return {"index": index, "rank": rank, **result.model_dump(exclude={"error"})}


def as_events(answer: dict[str, Any], *, is_chat: bool, include_usage: bool) -> str:
    """The answer as the events of a stream: for each choice its text and its end, usage where asked for, [DONE]."""
    rest = {name: value for name, value in answer.items() if name not in ("choices", "usage", "quorum", "object")}
    head = {**rest, "object": "chat.completion.chunk" if is_chat else answer.get("object", "text_completion")}
    chunks = []
    for choice in answer["choices"]:
        body = {name: value for name, value in choice.items() if name not in ("message", "finish_reason")}
        end = {"index": choice["index"], "finish_reason": choice.get("finish_reason")}
        text: dict[str, Any] = {"delta": choice["message"]} if is_chat else {}
        nothing: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
        chunks.append({**head, "choices": [{**body, **text, "finish_reason": None}]})
        chunks.append({**head, "choices": [{**end, **nothing}]})
    chunks[-1]["quorum"] = answer["quorum"]
    if include_usage:
        chunks.append({**head, "choices": [], "usage": answer.get("usage")})
    return "".join(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
