"""Padding in a text: what a batch decoded with its special tokens has at its ends.

    "[PAD][PAD][CLS]ab[SEP]"  --strip-->  "[CLS]ab[SEP]"

By the tokenizer's own tokens as they are written, not by ids: its pad id may be that of an unknown word as well.
"""

from __future__ import annotations

import re
from typing import Any


class Padding:
    """Strips the padding of one tokenizer.

    Args:
        tokenizer: its pad token, its BOS and its EOS are read once.
    """

    def __init__(self, tokenizer: Any) -> None:
        pad, bos, eos = tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token
        # One character, as some tokenizers have it for want of a pad token, may be a text's own.
        self._pad = pad if pad is not None and len(pad) > 1 else None
        self._eos = eos
        self._opens = self._pad is not None and self._pad == bos
        self._closes = self._pad is not None and self._pad == eos
        # Matched from the start, the end by the text reversed: a search would begin anew at every token of a long run.
        self._front = self._pad and re.compile(rf"(?:\s*{re.escape(self._pad)})+")
        self._back = self._pad and _reversed_run(self._pad)
        self._closing = eos and _reversed_run(eos)

    def strip(self, text: str) -> str:
        """The text without pad tokens at its ends, and with one EOS of several that close it.

        A pad token that is BOS or EOS too stays once at that end. A text of nothing but pad tokens becomes empty.
        """
        if self._front and self._back and self._pad:
            if found := self._front.match(text):
                text = (self._pad if self._opens else "") + text[found.end() :]
            if not self._closes:
                text = _drop_end(text, self._back, "")
        return _drop_end(text, self._closing, self._eos) if self._closing else text


def _reversed_run(token: str) -> re.Pattern[str]:
    backwards = re.escape(token[::-1])
    return re.compile(rf"\s*{backwards}(?:\s*{backwards})*")


def _drop_end(text: str, run: re.Pattern[str], instead: str) -> str:
    found = run.match(text[::-1])
    if found is None or (instead and len(found[0].strip()) == len(instead)):
        return text  # nothing there, or a single one, with what is written after it
    return text[: len(text) - found.end()] + instead
