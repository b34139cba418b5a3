"""A judge behind OpenAI's API, and the journal of what it said.

    [Question]  --Judge.ask, some at once-->  Judgement, a line of the journal each  --a later run-->  asked once alone

A question that was judged is known by its text, model and options: another prompt or judge is asked anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from quorum_client.errors import GenerationInvalid, GeneratorRefused, InvalidRequest
from quorum_client.generation import Generator


@dataclass(frozen=True, slots=True)
class Question:
    """One judgement that is wanted. name: for people. max_tokens: of the judge's answer."""

    name: str
    messages: list[dict[str, str]]
    max_tokens: int

    def key(self, model: str, options: dict[str, Any]) -> str:
        """Equal for what the judge would be asked alike."""
        asked = [self.messages, self.max_tokens, model, options]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the judge said. top: log-probabilities of its likeliest first tokens, if asked for. error: why nothing."""

    name: str
    text: str | None
    top: dict[str, float] = field(default_factory=dict)
    error: str | None = None


class _Token(BaseModel):
    token: str
    logprob: float


class _Place(BaseModel):
    top_logprobs: list[_Token] = []


class _Logprobs(BaseModel):
    content: list[_Place] | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    logprobs: _Logprobs | None = None


class _Reply(BaseModel):
    choices: list[_Choice]


class Judge:
    """Asks questions, keeps answers.

    Args:
        generator: client of the judge's server.
        model: the judge.
        journal: file of judgements, one JSON line each; continued where it is there.
        weighted: ask for log-probabilities of the first token.

    Raises:
        InvalidRequest: the journal is none.
    """

    def __init__(self, generator: Generator, model: str, journal: Path, *, weighted: bool = False) -> None:
        self._generator = generator
        self._model = model
        self._journal = journal
        self._options: dict[str, Any] = {"temperature": 0.0}
        if weighted:
            self._options |= {"logprobs": True, "top_logprobs": 5}
        self._known = _read_journal(journal)

    async def ask(
        self, questions: Sequence[Question], *, at_once: int, told: Callable[[Judgement], None] = lambda _: None
    ) -> list[Judgement]:
        """Judgements in the order of the questions. told: of each, as soon as it is there.

        Raises:
            QuorumError: the server is away or set up otherwise; what was judged is in the journal.
        """
        turns = asyncio.Semaphore(at_once)

        async def one(question: Question) -> Judgement:
            key = question.key(self._model, self._options)
            known = self._known.get(key)
            if known is None:
                async with turns:
                    known = await self._judge(question)
                self._keep(key, known)
            told(known)
            return known

        asked = [asyncio.create_task(one(question)) for question in questions]
        try:
            return list(await asyncio.gather(*asked))
        finally:  # after the first error nothing more is asked
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _judge(self, question: Question) -> Judgement:
        body = {"model": self._model, "messages": question.messages, "max_tokens": question.max_tokens}
        try:
            answer = await self._generator.call("POST", "/chat/completions", body | self._options)
        except GeneratorRefused as error:  # too long for the judge, say: the others are not lost with it
            return Judgement(question.name, None, error=error.message)
        try:
            (choice,) = _Reply.model_validate_json(answer).choices
        except (ValidationError, ValueError) as error:
            raise GenerationInvalid("the judge's answer cannot be read") from error
        places = (choice.logprobs.content or []) if choice.logprobs is not None else []
        top = {one.token: one.logprob for one in places[0].top_logprobs} if places else {}
        return Judgement(question.name, choice.message.content or "", top)

    def _keep(self, key: str, judgement: Judgement) -> None:
        self._known[key] = judgement
        line = {"key": key, "judge": self._model, **asdict(judgement)}
        with self._journal.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _read_journal(path: Path) -> dict[str, Judgement]:
    """What is there; a last line that was cut off in the middle is cut away."""
    if not path.exists():
        return {}
    known, size = {}, 0
    content = path.read_bytes()
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n") and line.startswith(b'{"key": "'[: len(line)]):
            break
        try:
            row = json.loads(line)
            known[str(row["key"])] = Judgement(str(row["name"]), row["text"], dict(row["top"]), row["error"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(f"{path}, line {number}: is no judgement; give another --out") from error
        size += len(line)
    if size < len(content):
        with path.open("r+b") as stream:
            stream.truncate(size)
    return known
