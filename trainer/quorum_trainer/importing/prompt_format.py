"""The prompt format that a model was trained in: the same token ids as Transformers and TRL give it.

    tokenizer (+ template)  --read_convention-->  Convention  --to_format-->  template, BOS, EOS of a bundle

A chat template says everything: what it writes is tokenised without further special tokens, as TRL's RewardTrainer and
`apply_chat_template` do; BOS and EOS are what it writes itself. Without one, prompt and response are one text, as in
TRL's standard format, with the tokenizer's special tokens around it; TRL also closes it by EOS.

Causal classes of Transformers score at the last token that is not the pad token, whether or not there is padding. Where
a sequence ends in EOS and EOS is the pad token (Llama's reward models by TRL), that is the token before: what follows
has no influence, and the format leaves it out, so that the last token is the one that is scored.

Knows nothing of weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quorum_client.types import Message, Prompt, Truncate
from quorum_model.bundle.manifest import PromptFormat, fingerprint_of
from quorum_model.errors import ItemRejected, Unsupported
from quorum_model.prompts import PromptEncoder, special_ids

JOINED_TEMPLATE = (
    "{% if messages | length > 2 %}{{ raise_exception('this model knows one prompt and one response') }}{% endif %}"
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
)
"""Prompt and response one after the other, without anything between: TRL's standard format with an explicit prompt."""

# Ours, of several lengths, none from any data set. The format is tried on all, the golden scores are of the first ones.
PAIRS: tuple[tuple[str, str], ...] = (
    ("What is the capital of France?", "Paris."),
    ("What is the capital of France?", "I will not tell you, and you should be ashamed of asking."),
    ("How do I boil an egg?", "Put it in boiling water for eight minutes, then cool it under the tap."),
    ("Write a short poem about rain.", "Rain on the roof, rain on the street,\nrain on the shoes on everyone's feet."),
)
_DIALOGUES: tuple[tuple[list[Message], str], ...] = (
    ([Message(role="system", content="Be brief."), Message(role="user", content="Hello.")], "Hello!"),
    (
        [
            Message(role="user", content="One and one?"),
            Message(role="assistant", content="Two."),
            Message(role="user", content="And two?  "),
        ],
        "Four. \n",
    ),
)
_UNBOUNDED = 1 << 20


@dataclass(frozen=True, slots=True)
class Convention:
    """How a model's own tokenizer encodes (prompt, response).

    template: in Jinja. is_chat: rendered text gets no special tokens; else the tokenizer's own. closing: text that a
    joined text ends in (TRL's EOS). ignored_id: the pad token, where the model scores at the last token that is
    another; None where it scores the last token or pools otherwise. is_own: the template is the tokenizer's own.
    """

    template: str
    is_chat: bool
    is_own: bool
    closing: str
    ignored_id: int | None

    def ids(self, tokenizer: Any, prompt: Prompt, response: str) -> list[int]:
        """Token ids as Transformers and TRL give them; trailing ignored ones included."""
        if self.is_chat:
            turns = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
            messages = [*(turn.model_dump() for turn in turns), {"role": "assistant", "content": response}]
            encoded = tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=True, return_dict=True
            )
        else:
            if not isinstance(prompt, str):
                raise ItemRejected("dialogue_refused", "this model knows one prompt and one response")
            text = prompt + response
            encoded = tokenizer(text if text.endswith(self.closing) else text + self.closing)
        ids: list[int] = encoded["input_ids"]
        return ids

    def scored_ids(self, ids: Sequence[int]) -> list[int]:
        """A sequence up to the token that the model scores."""
        end = len(ids)
        while end > 1 and ids[end - 1] == self.ignored_id:
            end -= 1
        return list(ids[:end])

    @property
    def description(self) -> str:
        """For the summary: which format this is."""
        if self.is_chat:
            return "the tokenizer's chat template" if self.is_own else "the given template"
        closed = f", closed by {self.closing}" if self.closing else ""
        return f"no chat template: prompt and response as one text{closed} (--template FILE for another)"


@dataclass(frozen=True, slots=True)
class TokenFormat:
    """A bundle's prompt format with its special tokens."""

    prompt_format: PromptFormat
    bos_ids: list[int]
    eos_ids: list[int]

    def encoder(self, tokenizer: Any, *, max_length: int, truncation: Truncate = "left") -> PromptEncoder:
        """The encoder of a bundle that has this format."""
        return PromptEncoder(
            tokenizer,
            template=self.prompt_format.template,
            bos_ids=self.bos_ids,
            eos_ids=self.eos_ids,
            max_length=max_length,
            truncation=truncation,
        )


def read_convention(tokenizer: Any, *, template: str | None, is_by_trl: bool, ignored_id: int | None) -> Convention:
    """The convention of a model's own tokenizer.

    Args:
        tokenizer: saved with the model or adapter.
        template: given by the user, instead of the tokenizer's.
        is_by_trl: TRL closes texts without a chat template by EOS.
        ignored_id: see `Convention`.

    Raises:
        Unsupported: several chat templates and no default one.
    """
    if template is None and tokenizer.chat_template is not None:
        try:
            own: str = tokenizer.get_chat_template()
        except ValueError as error:
            raise Unsupported(
                "the tokenizer has several chat templates and no default: choose by --template"
            ) from error
        return Convention(own, is_chat=True, is_own=True, closing="", ignored_id=ignored_id)
    if template is not None:
        return Convention(template, is_chat=True, is_own=False, closing="", ignored_id=ignored_id)
    closing = str(tokenizer.eos_token) if is_by_trl and tokenizer.eos_token is not None else ""
    return Convention(JOINED_TEMPLATE, is_chat=False, is_own=False, closing=closing, ignored_id=ignored_id)


def to_format(convention: Convention, own: Any, served: Any) -> TokenFormat:
    """The convention as a bundle's prompt format, tried on several dialogues.

    Args:
        convention: of the model's own tokenizer.
        own: that tokenizer.
        served: the tokenizer that the bundle will use; of an adapter, its base's.

    Raises:
        Unsupported: the bundle would encode some dialogue otherwise than the model's own tokenizer.
    """
    known = _known_ids(convention, own)
    made = (
        _chat_format(convention, own, [ids for _, _, ids in known]) if convention.is_chat else _joined(convention, own)
    )
    encoder = made.encoder(served, max_length=_UNBOUNDED)
    for prompt, response, ids in known:
        if encoder.encode_pair(prompt, response).ids != convention.scored_ids(ids):
            raise Unsupported(
                "the prompt format cannot be kept: a bundle's encoder gives other token ids than the model's own "
                "tokenizer (does the adapter's tokenizer differ from its base's?)"
            )
    return made


def _known_ids(convention: Convention, tokenizer: Any) -> list[tuple[Prompt, str, list[int]]]:
    """(prompt, response, ids) of the dialogues that the template takes; it must take a single turn."""
    known: list[tuple[Prompt, str, list[int]]] = []
    tried: tuple[tuple[Prompt, str], ...] = (*PAIRS, *_DIALOGUES)
    for prompt, response in tried:
        try:
            known.append((prompt, response, convention.ids(tokenizer, prompt, response)))
        except Exception as error:  # a template is a program: some refuse a system's turn, and by errors of any type
            if isinstance(prompt, str):
                raise Unsupported(f"the template refuses a prompt with its response: {error}") from error
    return known


def _joined(convention: Convention, tokenizer: Any) -> TokenFormat:
    opening, ending = _special_ids(tokenizer)
    eos_ids = [*([int(tokenizer.eos_token_id)] if convention.closing else []), *ending]
    while eos_ids and eos_ids[-1] == convention.ignored_id:
        eos_ids.pop()
    return _make(convention.template, "imported", opening, eos_ids)


def _chat_format(convention: Convention, tokenizer: Any, known: list[list[int]]) -> TokenFormat:
    opening, ending = _special_ids(tokenizer)
    bos_ids = _common_run(known, {tokenizer.bos_token_id, tokenizer.cls_token_id, *opening})
    eos_ids = _common_run([ids[::-1] for ids in known], {tokenizer.eos_token_id, tokenizer.sep_token_id, *ending})
    origin = "tokenizer" if convention.is_own else "imported"
    if eos_ids and eos_ids[0] == convention.ignored_id:
        token = str(tokenizer.convert_ids_to_tokens(eos_ids[0]))
        return _make(_without_ending(convention.template, token, len(eos_ids)), origin, bos_ids, [])
    return _make(convention.template, origin, bos_ids, eos_ids)


def _make(template: str, origin: Any, bos_ids: list[int], eos_ids: list[int]) -> TokenFormat:
    fingerprint = fingerprint_of(template, bos_ids, eos_ids)
    return TokenFormat(PromptFormat(template=template, origin=origin, fingerprint=fingerprint), bos_ids, eos_ids)


def _special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    try:
        return special_ids(tokenizer)
    except ValueError as error:
        raise Unsupported(f"the tokenizer's special tokens cannot be told apart: {error}") from error


def _common_run(sequences: list[list[int]], special: set[int | None]) -> list[int]:
    """The run of one special token that opens every sequence: [] where they differ; two where a template writes two."""
    runs = []
    for ids in sequences:
        length = next((index for index, token in enumerate(ids) if token != ids[0]), len(ids))
        runs.append([ids[0]] * length if ids[0] in special else [])
    return runs[0] if all(run == runs[0] for run in runs) else []


def _without_ending(template: str, token: str, times: int) -> str:
    """A template whose text lacks the token that the original always writes last, so many times.

    Blanks behind it are no tokens: the sequence of ids ends in it. Those before it stay.
    """
    # At the end of a template Jinja drops a newline, and only there.
    body = template.removesuffix("\n")
    literal = json.dumps(token, ensure_ascii=False)
    return (
        "{% set whole_text %}"
        + body
        + "{% endset %}{{ whole_text"
        + f".rstrip().removesuffix({literal})" * times
        + " }}"
    )
