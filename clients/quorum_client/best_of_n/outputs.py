"""Picks in the formats that judges read.

    [Record]  --alpaca_eval_outputs-->  AlpacaEval's model_outputs
              --mt_bench_answers-->     MT-Bench's model_answer, as FastChat reads it

Knows no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quorum_client.best_of_n.record import Record
from quorum_client.errors import InvalidRequest


def alpaca_eval_outputs(records: Sequence[Record], generator: str) -> list[dict[str, Any]]:
    """AlpacaEval's `model_outputs`: instruction, output, generator, dataset.

    Args:
        records: each with a pick.
        generator: name of what is judged.

    Raises:
        InvalidRequest: a prompt without a pick: an output left out would be compared with nothing, and an empty one
            would be judged as an answer.
    """
    missing = [record.prompt_id for record in records if record.picked is None]
    if missing:
        raise InvalidRequest(f"{len(missing)} prompts have no pick, the first of them {missing[0]!r}")
    return [
        {
            "instruction": _instruction(record),
            "output": record.picked,
            "generator": generator,
            "dataset": str(record.line["extra"].get("dataset", "quorum")),
        }
        for record in records
    ]


def mt_bench_answers(records: Sequence[Record], model_id: str, tstamp: float) -> list[dict[str, Any]]:
    """FastChat's model_answer lines: question_id, answer_id, model_id, choices of one answer with all turns, tstamp.

    Args:
        records: of every turn, those of a question one after another.
        model_id: name of what is judged.
        tstamp: Unix time.

    Raises:
        InvalidRequest: a turn without a pick, or none: a question left out would be rated as nothing.
    """
    answers: dict[str, dict[str, Any]] = {}
    for record in records:
        question, _, turn = record.prompt_id.partition("/")
        if record.picked is None:
            raise InvalidRequest(f"question {question}, turn {turn or 1} has no pick")
        if question not in answers:
            answers[question] = {
                "question_id": record.line["extra"].get("question_id", question),
                "answer_id": f"{model_id}-{question}",
                "model_id": model_id,
                "choices": [{"index": 0, "turns": []}],
                "tstamp": tstamp,
            }
        answers[question]["choices"][0]["turns"].append(record.picked)
    return list(answers.values())


def _instruction(record: Record) -> str:
    prompt = record.line["prompt"]
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    raise InvalidRequest(f"prompt {record.prompt_id!r} is a dialogue, and AlpacaEval has single turns")
