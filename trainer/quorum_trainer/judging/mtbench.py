"""MT-Bench: answers to two turns, each rated from 1 to 10 (arXiv 2306.05685, single answer grading).

    questions, answers, references  --rating_questions-->  judge  --ratings-->  Ratings

Questions, answers and references are in FastChat's formats. Pure but for the reading.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorum_client.errors import InvalidRequest
from quorum_trainer.judging.judge import Judgement, Question
from quorum_trainer.judging.templates import Template
from quorum_trainer.judging.verdicts import read_rating

_NEEDS_REFERENCE = frozenset({"math", "reasoning", "coding", "arena-hard-200"})
_MAX_TOKENS = 2048
_PROMPTS = {
    (1, False): "single-v1",
    (1, True): "single-math-v1",
    (2, False): "single-v1-multi-turn",
    (2, True): "single-math-v1-multi-turn",
}


@dataclass(frozen=True, slots=True)
class MtQuestion:
    """A question of two turns (or one)."""

    question_id: str
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ratings:
    """average: of all judged turns, as FastChat shows it. by_turn, by_category: means. failed: turns without a rating.

    Means are None where nothing was rated.
    """

    average: float | None
    by_turn: dict[int, float | None]
    by_category: dict[str, float | None]
    failed: int


def read_questions(path: Path) -> list[MtQuestion]:
    """FastChat's question.jsonl. Raises: InvalidRequest: it cannot be read, or is something else."""
    return [
        MtQuestion(str(row["question_id"]), str(row["category"]), tuple(map(str, row["turns"])))
        for row in _rows(path, ("question_id", "category", "turns"))
    ]


def read_answers(path: Path) -> dict[str, tuple[str, ...]]:
    """The turns of FastChat's model_answer files (and of its reference answers), by question; raises as above."""
    rows = _rows(path, ("question_id", "choices"))
    try:
        return {str(row["question_id"]): tuple(map(str, row["choices"][0]["turns"])) for row in rows}
    except (IndexError, KeyError, TypeError) as error:
        raise InvalidRequest(f"{path}: an answer has no turns") from error


def _rows(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path}: cannot be read: {error}") from error
    if not rows or not all(isinstance(row, dict) and all(field in row for field in fields) for row in rows):
        raise InvalidRequest(f"{path}: every line needs {', '.join(fields)}")
    return rows


def rating_questions(
    asked: Sequence[MtQuestion],
    answers: Mapping[str, Sequence[str]],
    references: Mapping[str, Sequence[str]],
    prompts: Mapping[str, Template],
) -> list[Question]:
    """One for every turn of every question, the second turn with the first before it.

    Raises:
        InvalidRequest: an answer, a reference that its category needs, or a judge prompt is missing.
    """
    wanted = []
    for own in asked:
        given = answers.get(own.question_id, ())
        if len(given) < len(own.turns):
            raise InvalidRequest(f"question {own.question_id} has {len(given)} of {len(own.turns)} answers")
        with_reference = own.category in _NEEDS_REFERENCE
        if with_reference and len(references.get(own.question_id, ())) < len(own.turns):
            raise InvalidRequest(f"question {own.question_id} ({own.category}) is rated with a reference answer")
        for turn in range(1, len(own.turns) + 1):
            name = _PROMPTS[min(turn, 2), with_reference]
            if name not in prompts:
                raise InvalidRequest(f"the judge prompts lack {name}")
            values = {"question": own.turns[0], "answer": given[0]}
            for place in range(turn):
                values |= {f"question_{place + 1}": own.turns[place], f"answer_{place + 1}": given[place]}
                if with_reference:
                    values[f"ref_answer_{place + 1}"] = references[own.question_id][place]
            wanted.append(Question(f"{own.question_id} turn {turn}", prompts[name].fill(values), _MAX_TOKENS))
    return wanted


def ratings(asked: Sequence[MtQuestion], judgements: Sequence[Judgement]) -> Ratings:
    """Means of what `rating_questions` got; a turn without a rating counts nowhere but in `failed`."""
    turns = [(own.category, turn) for own in asked for turn in range(1, len(own.turns) + 1)]
    rated = [
        (category, turn, rating)
        for (category, turn), said in zip(turns, judgements, strict=True)
        if (rating := None if said.text is None else read_rating(said.text)) is not None
    ]
    return Ratings(
        _mean([rating for _, _, rating in rated]),
        {
            turn: _mean([rating for _, place, rating in rated if place == turn])
            for turn in sorted({t for _, t in turns})
        },
        {name: _mean([r for category, _, r in rated if category == name]) for name in sorted({c for c, _ in turns})},
        len(turns) - len(rated),
    )


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
