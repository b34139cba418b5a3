"""What a preference pair is, as text and as token ids, and when two prompts are the same.

Data alone. Knows no files, models or training.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from quorum_client.errors import InvalidRequest
from quorum_client.types import Prompt


class DataError(InvalidRequest):
    """A data file cannot be used; the message names file, line and field, and holds none of the text."""

    code = "invalid_data"


class Prompted(BaseModel):
    """Something that is said to a prompt, and when two prompts are the same."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: Prompt

    def prompt_key(self) -> str:
        """Equal for equal prompts: a string is a user's only turn."""
        return json.dumps(self._turns())

    def loose_prompt_key(self) -> str:
        """Equal for prompts that differ in case, spacing or Unicode's compatibility forms alone."""
        return json.dumps([[role, _normalise(content)] for role, content in self._turns()])

    def _turns(self) -> list[list[str]]:
        if isinstance(self.prompt, str):
            return [["user", self.prompt]]
        return [[message.role, message.content] for message in self.prompt]


class PreferencePair(Prompted):
    """One comparison: for this prompt, `chosen` was preferred to `rejected`.

    margin: how much better `chosen` is, any finite number; None where nobody said. tie: neither is better, and which
    is called chosen means nothing. line: where it was read, of a file or among a data set's rows, counted from 1.
    """

    chosen: str
    rejected: str
    margin: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = None
    tie: bool = Field(False, strict=True)
    line: int | None = None


def _normalise(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Once more: folding can leave characters in another form or order (Unicode's NFKC_Casefold does the same).
    return " ".join(unicodedata.normalize("NFKC", folded).split())


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Token ids of both sides. chosen_chars, rejected_chars: of the responses, for the length baselines.

    phase: trained on in this phase alone; None for both. margin: how much better chosen is; 0 where nobody said.
    tie: neither is better. weight: how often it is seen in an epoch, relative to once.
    """

    chosen: list[int]
    rejected: list[int]
    source: str
    chosen_chars: int
    rejected_chars: int
    phase: int | None = None
    margin: float = 0.0
    tie: bool = False
    weight: float = 1.0

    @property
    def num_tokens(self) -> int:
        """Tokens of both sides."""
        return len(self.chosen) + len(self.rejected)
