"""Picks in the formats that judges read.

    [Record]  --alpaca_eval_outputs-->  AlpacaEval's model_outputs

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


def _instruction(record: Record) -> str:
    prompt = record.line["prompt"]
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    raise InvalidRequest(f"prompt {record.prompt_id!r} is a dialogue, and AlpacaEval has single turns")
