"""The record of a prompt: every candidate with its scores, the pick, and by which model and ensemble it came about.

    PromptTask, Generation | given texts, RankResponse  --make_record-->  Record  --to_json-->  one JSON line

A line:

    prompt_id, prompt, extra       as in the input
    candidates                     [{text, finish_reason, num_tokens (of the reward model), score, mean, std, members,
                                     truncated, error, and what was given with it}]
    order, pick                    indices, best first; pick is null where no candidate could be scored
    error                          null, or {code, message}: why there is no pick
    ensemble, mode, beta, center   of the ranking; null where there was none
    generation                     null for given candidates, or {model, sampling, seed, usage}

Knows no files and no server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quorum_client.best_of_n.prompts import PromptTask
from quorum_client.errors import QuorumError
from quorum_client.generation.types import Generation, SamplingOptions
from quorum_client.types import RankResponse

NO_SCORE = {"code": "nothing_to_pick", "message": "no candidate could be scored"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run generates with. seed: of the run; each prompt has its own, derived from it."""

    model: str
    sampling: SamplingOptions
    seed: int

    def to_json(self) -> dict[str, object]:
        """As the record has it, without the prompt's own seed."""
        sampling = asdict(self.sampling)
        del sampling["seed"], sampling["token_ids"], sampling["logprobs"]
        return {"model": self.model, "sampling": {**sampling, "stop": list(self.sampling.stop), "seed": self.seed}}


@dataclass(frozen=True, slots=True)
class Record:
    """See the module. line: JSON-ready."""

    line: dict[str, Any]

    @property
    def prompt_id(self) -> str:
        """Which prompt."""
        return str(self.line["prompt_id"])

    @property
    def picked(self) -> str | None:
        """The picked text; None where there is no pick."""
        pick = self.line["pick"]
        return None if pick is None else str(self.line["candidates"][pick]["text"])

    @property
    def origin(self) -> dict[str, Any] | None:
        """By what it was ranked; None where it was not."""
        keys = ("ensemble", "mode", "beta", "center")
        return None if self.line["ensemble"] is None else {key: self.line[key] for key in keys}

    @property
    def asked(self) -> dict[str, Any] | None:
        """With what it was generated, but for the prompt's own seed; None where candidates were given."""
        generation = self.line["generation"]
        return None if generation is None else {key: generation[key] for key in ("model", "sampling")}


def make_record(
    task: PromptTask,
    texts: Sequence[str],
    answer: RankResponse | None,
    *,
    generation: Generation | None = None,
    asked: Asked | None = None,
    seed: int | None = None,
    error: QuorumError | None = None,
) -> Record:
    """One prompt's record.

    Args:
        task: the prompt.
        texts: its N candidates.
        answer: of POST /rank; None where it did not come to that.
        generation: where a generator wrote the texts.
        asked: with what.
        seed: the prompt's own.
        error: why there is no answer.
    """
    candidates = [_candidate(task, text, index, answer, generation) for index, text in enumerate(texts)]
    pick = None if answer is None or answer.results[answer.best].error is not None else answer.best
    problem = None if error is None else {"code": error.code, "message": error.message}
    if answer is not None and pick is None:
        problem = NO_SCORE
    return Record(
        {
            "prompt_id": task.prompt_id,
            "prompt": task.to_json(),
            "extra": dict(task.extra),
            "candidates": candidates,
            "order": None if answer is None else answer.order,
            "pick": pick,
            "error": problem,
            "ensemble": None if answer is None else answer.ensemble.model_dump(),
            "mode": None if answer is None else answer.mode,
            "beta": None if answer is None else answer.beta,
            "center": None if answer is None else answer.center,
            "generation": None if asked is None else {**asked.to_json(), "seed": seed, "usage": _usage(generation)},
        }
    )


def _candidate(
    task: PromptTask, text: str, index: int, answer: RankResponse | None, generation: Generation | None
) -> dict[str, Any]:
    given: Mapping[str, object] = task.given[index] if task.given else {}
    candidate: dict[str, Any] = {**given, "text": text}
    if generation is not None:
        candidate["finish_reason"] = generation.completions[index].finish_reason
    if answer is not None:
        candidate |= answer.results[index].model_dump(mode="json")
    return candidate


def _usage(generation: Generation | None) -> dict[str, int] | None:
    return None if generation is None or generation.usage is None else asdict(generation.usage)
