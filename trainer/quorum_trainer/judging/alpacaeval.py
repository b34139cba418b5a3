"""AlpacaEval: answers against a baseline's, each pair judged in both orders.

    outputs, baseline  --pair_up-->  [Pairing]  --questions-->  judge  --win_rate-->  WinRate

Preferences and win rates as alpaca_eval defines them (arXiv 2404.04475): a preference lies in [0, 1], the win rate is
its mean. Pure but for the reading.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from quorum_client.errors import InvalidRequest
from quorum_trainer.judging.judge import Judgement, Question
from quorum_trainer.judging.templates import Template
from quorum_trainer.judging.verdicts import read_preference, weigh_tokens

_VERDICT_TOKENS = 1024
_CLASSIFIER_TOKENS = 1


@dataclass(frozen=True, slots=True)
class Pairing:
    """One instruction with both answers."""

    instruction: str
    output: str
    baseline: str


@dataclass(frozen=True, slots=True)
class WinRate:
    """win_rate, standard_error: in per cent; of those that were judged. preferences: None where the judge failed.

    wins, draws, losses: preferences above, at and below one half.
    """

    win_rate: float | None
    standard_error: float | None
    wins: int
    draws: int
    losses: int
    failed: int
    preferences: list[float | None]


def read_outputs(path: Path) -> dict[str, str]:
    """AlpacaEval's model outputs (a JSON list, or JSON lines): output by instruction.

    Raises:
        InvalidRequest: the file cannot be read, is something else, or has an instruction twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
        pairs = [(str(row["instruction"]), str(row["output"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"{path}: holds no outputs in AlpacaEval's format: {error!r}") from error
    if len({instruction for instruction, _ in pairs}) < len(pairs) or not pairs:
        raise InvalidRequest(f"{path}: has an instruction twice, or none")
    return dict(pairs)


def pair_up(outputs: dict[str, str], baseline: dict[str, str]) -> list[Pairing]:
    """Both answers to every instruction.

    Raises:
        InvalidRequest: an instruction has no baseline: it would be left out in silence.
    """
    missing = [instruction for instruction in outputs if instruction not in baseline]
    if missing:
        raise InvalidRequest(f"{len(missing)} of {len(outputs)} instructions have no answer of the baseline")
    return [Pairing(instruction, output, baseline[instruction]) for instruction, output in outputs.items()]


def questions(pairings: Sequence[Pairing], template: Template) -> list[Question]:
    """Two for each pairing: the baseline first, as alpaca_eval has it, and the other way round."""
    is_classifier = all("[[A]]" not in text for _, text in template.messages)
    max_tokens = _CLASSIFIER_TOKENS if is_classifier else _VERDICT_TOKENS
    asked = []
    for number, own in enumerate(pairings):
        for order, (first, second) in (("", (own.baseline, own.output)), (" swapped", (own.output, own.baseline))):
            values = {"instruction": own.instruction, "output_1": first, "output_2": second}
            asked.append(Question(f"{number}{order}", template.fill(values), max_tokens))
    return asked


def preferences(judgements: Sequence[Judgement], *, weighted: bool) -> list[float | None]:
    """How far each answer is preferred to the baseline's: the mean over both orders; None where either failed."""
    found: list[float | None] = []
    for plain, swapped in zip(judgements[::2], judgements[1::2], strict=True):
        first, second = (_of_first(one, weighted=weighted) for one in (plain, swapped))
        found.append(None if first is None or second is None else ((1 - first) + second) / 2)
    return found


def _of_first(judgement: Judgement, *, weighted: bool) -> float | None:
    if judgement.text is None:
        return None
    return weigh_tokens(judgement.top) if weighted else read_preference(judgement.text)


def win_rate(found: Sequence[float | None]) -> WinRate:
    """The figures of some preferences."""
    judged = [one for one in found if one is not None]
    rate = 100 * statistics.fmean(judged) if judged else None
    error = 100 * statistics.stdev(judged) / math.sqrt(len(judged)) if len(judged) > 1 else None
    return WinRate(
        rate,
        error,
        sum(one > 0.5 for one in judged),
        sum(one == 0.5 for one in judged),
        sum(one < 0.5 for one in judged),
        len(found) - len(judged),
        list(found),
    )


def length_controlled(pairings: Sequence[Pairing], found: Sequence[float | None]) -> tuple[float | None, str | None]:
    """alpaca_eval's length-controlled win rate in per cent, or None and why not.

    By the package itself; its regression needs the difficulty of AlpacaEval's own 805 instructions, which it downloads.
    """
    try:
        get_length_controlled_winrate = import_module("alpaca_eval.metrics").get_length_controlled_winrate
    except ModuleNotFoundError:
        return None, "pip install alpaca_eval"
    rows: list[dict[str, Any]] = [
        {
            "instruction": own.instruction, "output_1": own.baseline, "output_2": own.output, "preference": 1 + one,
            "generator_1": "baseline", "generator_2": "model", "annotator": "judge", "index": number,
        }
        for number, (own, one) in enumerate(zip(pairings, found, strict=True)) if one is not None
    ]  # fmt: skip
    try:
        return float(get_length_controlled_winrate(rows, save_weights_dir=None)["length_controlled_winrate"]), None
    except Exception as error:  # what it needs of the network and of the set fails in many ways
        return None, f"alpaca_eval: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
