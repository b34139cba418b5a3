"""From an item on the wire to the token ids that the backbone sees.

    ScoreItem  --chat template-->  text  --tokenizer-->  ids  --BOS and EOS exactly once, cut to length-->  EncodedItem

One mechanism for every backbone: a Jinja chat template (the backbone's own, or ours where it has none). Knows nothing
of weights, members or HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quorum_client.types import Message, ScoreItem, Truncate
from quorum_model.bundle.manifest import PromptFormat, fingerprint_of
from quorum_model.bundle.read import Bundle
from quorum_model.errors import ItemRejected
from quorum_model.padding import Padding
from quorum_model.sources import check_tokenizer, load_tokenizer, resolve_backbone, vocabulary_size

PLAIN_TEMPLATE = (
    "{% set names = {'system': 'System', 'user': 'Human', 'assistant': 'Assistant', 'tool': 'Tool'} %}"
    "{% for message in messages %}"
    "{{ '' if loop.first else '\n\n' }}{{ names[message['role']] }}: {{ message['content'] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant: ' }}{% endif %}"
)
"""The format of backbones without a chat template: `Human: …`, blank line, `Assistant: …`."""


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """One sequence for the engine. ids: with BOS and EOS. truncated: whether anything was cut."""

    ids: list[int]
    truncated: bool


def default_prompt_format(tokenizer: Any, *, is_causal: bool) -> tuple[PromptFormat, list[int], list[int]]:
    """The prompt format of a new ensemble: the tokenizer's own template and special tokens, or the plain one.

    A causal backbone under the plain template is closed by EOS where its tokenizer adds none, so that the pooled last
    token is the same for every text.

    Returns:
        (format, bos_ids, eos_ids).
    """
    bos_ids, eos_ids = special_ids(tokenizer)
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else PLAIN_TEMPLATE
    origin = "tokenizer" if template is tokenizer.chat_template else "plain"
    if is_causal and origin == "plain" and not eos_ids and tokenizer.eos_token_id is not None:
        eos_ids = [int(tokenizer.eos_token_id)]
    fingerprint = fingerprint_of(template, bos_ids, eos_ids)
    return PromptFormat(template=template, origin=origin, fingerprint=fingerprint), bos_ids, eos_ids


def special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer itself puts before and after a text: ([CLS], [SEP]), ([BOS], []), ([], [])."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    raise ValueError("the tokenizer changes a text's own tokens when it adds special ones")


class PromptEncoder:
    """Encodes items in one prompt format.

    Args:
        tokenizer: a fast tokenizer.
        template: chat template in Jinja.
        bos_ids: ids that open every sequence, exactly once, whether or not the template writes them.
        eos_ids: ids that close every sequence, exactly once.
        max_length: tokens a sequence may have, special ones included.
        truncation: which end is cut where an item does not say.
        vocab_size: token ids that the backbone knows; the tokenizer's own count if None.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str,
        bos_ids: Sequence[int],
        eos_ids: Sequence[int],
        max_length: int,
        truncation: Truncate = "left",
        vocab_size: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.model_max_length = 1 << 30  # lengths are ours to watch; silences its warning
        self._template = template
        self._bos = list(bos_ids)
        self._eos = list(eos_ids)
        self._budget = max_length - len(self._bos) - len(self._eos)
        self._max_length = max_length
        self._truncation = truncation
        self._vocab_size = len(tokenizer) if vocab_size is None else vocab_size
        # Once: the tokenizer makes these lists anew each time that it is asked.
        self._special_tokens = list(tokenizer.all_special_tokens)
        self._special_ids = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self._opening = re.compile("|".join([r"\s", *map(re.escape, self._special_tokens)]).join(["(?:", ")*"]))
        self._padding = Padding(tokenizer)

    def encode(self, item: ScoreItem, truncate: Truncate | None = None) -> EncodedItem:
        """Token ids of an item.

        (prompt, response): where it is too long, the prompt is cut first, at its left or right end; only when nothing
        of it is left is the response cut, at the same end. So is a text that begins with its own prompt; other text and
        token ids are cut as one piece. Of text, padding is dropped (see `Padding`). Token ids are taken as they are,
        special ones included.

        Args:
            item: what to encode.
            truncate: which end to cut, or "error"; None takes the default.

        Raises:
            ItemRejected: blank text, text without tokens of its own, a lone surrogate, ids out of range, a dialogue
                that the template refuses, or too long where truncate is "error".
        """
        side = truncate or self._truncation
        if item.token_ids is not None:
            ids = self._checked_ids(item.token_ids)
            if not self._without_specials(ids):
                raise ItemRejected("empty_text", "token_ids holds special tokens alone")
            if len(ids) <= self._max_length:
                return EncodedItem(list(ids), False)
            return self._finish(ids, 0, side, only_given_specials=True)
        if item.text is not None:
            _check_text(item.text)
            return self._encode_text(self._padding.strip(item.text), item.prompt, side)
        assert item.prompt is not None
        assert item.response is not None
        return self.encode_pair(item.prompt, item.response, side)

    def _encode_text(self, text: str, prompt: str | list[Message] | None, side: Truncate) -> EncodedItem:
        ids = self._tokenize(text)
        boundary = self._end_of_prompt(text, prompt) if isinstance(prompt, str) and prompt else None
        if boundary is None:
            return self._finish(ids, 0, side)
        if not self._has_tokens(text[boundary:]):
            raise ItemRejected("empty_text", "the text has no tokens of its own behind its prompt")
        is_long = len(self._without_specials(ids)) > self._budget
        return self._finish(ids, self._count_tokens_before(text, boundary) if is_long else 0, side)

    def _end_of_prompt(self, text: str, prompt: str) -> int | None:
        """Where the prompt ends that a text begins with, in characters; special tokens and space may open either."""
        own = prompt[self._skip_opening(prompt) :]
        start = self._skip_opening(text)
        return start + len(own) if text.startswith(own, start) else None

    def _skip_opening(self, text: str) -> int:
        found = self._opening.match(text)
        return found.end() if found else 0

    def encode_pair(self, prompt: str | list[Message], response: str, truncate: Truncate | None = None) -> EncodedItem:
        """Token ids of (prompt, response); see `encode`."""
        messages = _messages(prompt)
        _check_text("".join(message["content"] for message in messages), "prompt")
        _check_text(response, "response")
        if not self._has_tokens(response):
            raise ItemRejected("empty_text", "the response has no tokens of its own")
        text = self._render([*messages, {"role": "assistant", "content": response}])
        ids = self._tokenize(text)
        num_prompt = 0
        if len(self._without_specials(ids)) > self._budget:
            num_prompt = self._count_prompt_tokens(text, messages, response)
        return self._finish(ids, num_prompt, truncate or self._truncation)

    def render_pair(self, prompt: str | list[Message], response: str) -> str:
        """(prompt, response) as one text under the template: as a `text` it has the same token ids."""
        return self._render([*_messages(prompt), {"role": "assistant", "content": response}])

    def _render(self, messages: list[dict[str, str]]) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(messages, chat_template=self._template, tokenize=False)
        except Exception as error:  # a template is a program: on some dialogues it raises errors of any type
            # Its own words may quote the dialogue.
            raise ItemRejected("dialogue_refused", "the chat template refuses this dialogue") from error
        return text

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _count_prompt_tokens(self, text: str, messages: list[dict[str, str]], response: str) -> int:
        """How many of the text's tokens lie before the response and the header that announces it."""
        prompt_text = self._render(messages)
        boundary = len(prompt_text)
        if not text.startswith(prompt_text):  # the template rewrites earlier turns: take the response's own place
            found = text.rfind(response.strip())
            boundary = found if found >= 0 else max(len(text) - len(response), 0)
        return self._count_tokens_before(text, boundary)

    def _count_tokens_before(self, text: str, boundary: int) -> int:
        """How many of the text's tokens begin before this character, BOS aside."""
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        num_before = sum(1 for start, _ in encoding["offset_mapping"] if start < boundary)
        return max(num_before - self._num_opening(encoding["input_ids"]), 0)

    def _checked_ids(self, ids: list[int]) -> list[int]:
        if not ids:
            raise ItemRejected("empty_text", "token_ids is empty")
        if max(ids) >= self._vocab_size:
            raise ItemRejected("token_id_out_of_range", f"token ids must be below {self._vocab_size}")
        return ids

    def _num_opening(self, ids: list[int]) -> int:
        """Tokens of BOS at the start, however often: a client and its template may both have written it."""
        start = 0
        while self._bos and ids[start : start + len(self._bos)] == self._bos:
            start += len(self._bos)
        return start

    def _without_specials(self, ids: list[int]) -> list[int]:
        start, end, size = self._num_opening(ids), len(ids), len(self._eos)
        while size and end - size >= start and ids[end - size : end] == self._eos:
            end -= size  # by place, not by slicing the list each time: a text may be nothing but EOS
        return ids[start:end]

    def _has_tokens(self, text: str) -> bool:
        """Whether a text has a token of its own: invisible characters have none, and special tokens are not its own."""
        plain = text
        for special in self._special_tokens:
            plain = plain.replace(special, "")
        if any(map(str.isalnum, plain)):  # a letter is a token, if an unknown one: nearly always the end of it
            return True
        return any(token not in self._special_ids for token in self._tokenize(text))

    def _finish(
        self, ids: list[int], num_prompt: int, side: Truncate, *, only_given_specials: bool = False
    ) -> EncodedItem:
        inner = self._without_specials(ids)
        has_bos = bool(self._bos) and ids[: len(self._bos)] == self._bos
        has_eos = bool(self._eos) and ids[-len(self._eos) :] == self._eos
        bos = self._bos if has_bos or not only_given_specials else []
        eos = self._eos if has_eos or not only_given_specials else []
        budget = self._max_length - len(bos) - len(eos)
        truncated = len(inner) > budget
        if truncated and side == "error":
            raise ItemRejected(
                "too_long", f"{len(inner) + len(bos) + len(eos)} tokens exceed the maximum of {self._max_length}"
            )
        kept = _cut(inner, num_prompt, budget, side) if truncated else inner
        result = [*bos, *kept, *eos]
        if not kept:
            raise ItemRejected("empty_text", "the text has no tokens of its own")
        return EncodedItem(result, truncated)


def _cut(ids: list[int], num_prompt: int, budget: int, side: Truncate) -> list[int]:
    """Cut to `budget` ids: the first `num_prompt` give way first; then the rest, at the same end."""
    prompt, rest = ids[:num_prompt], ids[num_prompt:]
    room = budget - len(rest)
    if room >= 0:
        kept = prompt[len(prompt) - room :] if side == "left" else prompt[:room]
        return kept + rest
    return rest[-budget:] if side == "left" else rest[:budget]


def _messages(prompt: str | list[Message]) -> list[dict[str, str]]:
    turns = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
    return [turn.model_dump() for turn in turns]


def _check_text(text: str, what: str = "text") -> None:
    if not text.strip():
        raise ItemRejected("empty_text", f"the {what} is empty or blank")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ItemRejected("invalid_unicode", f"the {what} holds a lone surrogate, which is no character") from error


def load_prompt_encoder(bundle: Bundle) -> PromptEncoder:
    """The encoder of a bundle: its backbone's tokenizer under the manifest's prompt format; loads no weights."""
    manifest = bundle.manifest
    folder = resolve_backbone(manifest.backbone.source, revision=manifest.backbone.revision, bundle_path=bundle.path)
    check_tokenizer(folder, manifest.backbone)
    return PromptEncoder(
        load_tokenizer(folder),
        template=manifest.prompt_format.template,
        bos_ids=manifest.bos_ids,
        eos_ids=manifest.eos_ids,
        max_length=manifest.max_length,
        truncation=manifest.truncation,
        vocab_size=vocabulary_size(folder),
    )
