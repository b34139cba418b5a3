"""The prompts of a run, in the policy's template.

    JSON lines  --load_prompts-->  [PromptRow], and how many were too long

Knows no servers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quorum_client.types import Prompt
from quorum_trainer.data.formats import RowRejected, check_text, read_messages
from quorum_trainer.data.pairs import DataError
from quorum_trainer.data.read import numbered_rows
from quorum_trainer.ppo.config import PromptOptions
from quorum_trainer.ppo.samples import PromptRow


def load_prompts(options: PromptOptions, tokenizer: Any, *, max_tokens: int) -> tuple[list[PromptRow], int]:
    """Prompts that fit, and the number of those that do not.

    Args:
        options: which file, and how many of it.
        tokenizer: the policy's, with its chat template.
        max_tokens: longest prompt, with the template's tokens up to where the answer begins.

    Raises:
        DataError: the file cannot be read, a line is no prompt (and which), or none fits.
    """
    path = Path(options.path)
    rows: list[PromptRow] = []
    too_long = 0
    try:
        for number, row in numbered_rows(path):
            try:
                prompt, reference = _read(row)
            except RowRejected as error:
                raise DataError(f"{path.name}, line {number}: {error}") from error
            ids = encode_prompt(prompt, tokenizer)
            if len(ids) > max_tokens:
                too_long += 1
                continue
            rows.append(PromptRow(len(rows), prompt, tuple(ids), reference))
            if len(rows) == options.max_prompts:
                break
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name}: cannot be read: {error}") from error
    if not rows:
        raise DataError(f"{path.name}: holds no prompt of at most {max_tokens} tokens ({too_long} longer ones)")
    return rows, too_long


def encode_prompt(prompt: Prompt, tokenizer: Any) -> list[int]:
    """Token ids of a prompt in the chat template, up to where the answer begins."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [t.model_dump() for t in prompt]
    ids: list[int] = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    return ids


def _read(row: object) -> tuple[Prompt, str | None]:
    if not isinstance(row, Mapping) or row.get("prompt") is None:
        raise RowRejected("prompt", "is missing")
    given = row["prompt"]
    prompt: Prompt = given if isinstance(given, str) else read_messages("prompt", given)
    check_text("prompt", prompt if isinstance(prompt, str) else "".join(turn.content for turn in prompt))
    reference = row.get("reference")
    if reference is not None:
        if not isinstance(reference, str):
            raise RowRejected("reference", "must be text")
        check_text("reference", reference)
    return prompt, reference
