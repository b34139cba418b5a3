"""The bodies of vLLM's pooling API, as items to score; see `vllm.py`.

    input | messages | queries, documents | query, documents  --items-->  ScoreItem, ...

What a client of vLLM would get wrong by being ignored is refused by its field's type; the rest of vLLM's fields are not
declared here, and so ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, model_validator

from quorum_client.errors import InvalidRequest
from quorum_client.types import ScoreItem
from quorum_server.routes.openai import EncodingFormat
from quorum_server.routes.translation import Chat, ForeignBody, Parts, TextsOrIds, chat_item, join_parts, text_items

_NoOptions = Annotated[dict[str, Any], Field(max_length=0)] | None

_SEPARATOR = "\n"
"""Between the parts of a text."""


class PoolingBody(ForeignBody):
    """What all these bodies share. What would be another text or number than the ensemble's is refused, by its type.

    truncate_prompt_tokens: -1 is the ensemble's own length; a shorter one there is not.
    """

    model: str | None = None
    use_activation: bool | None = None
    activation: bool | None = None
    normalize: None = None
    chat_template_kwargs: _NoOptions = None
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    truncation_side: Literal["left", "right"] | None = None

    @property
    def is_raw(self) -> bool:
        """Whether scores are asked for as they are."""
        chosen = self.activation if self.use_activation is None else self.use_activation
        return chosen is False


class ClassifyRequest(PoolingBody):
    """input: templated texts or token ids; or messages, which end with the response."""

    add_generation_prompt: Literal[False] | None = None
    continue_final_message: Literal[False] | None = None
    input: TextsOrIds | None = None
    messages: Chat | None = None

    @model_validator(mode="after")
    def _check_shape(self) -> ClassifyRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either input or messages")
        return self

    def items(self) -> list[ScoreItem]:
        """What is to be scored. Raises: InvalidRequest: nothing, or messages without a response."""
        return [chat_item(self.messages, _SEPARATOR)] if self.messages is not None else text_items(self.input or [])


class PoolingRequest(ClassifyRequest):
    """task: a reward model has one number for a text, and none for its tokens."""

    task: Literal["classify"] | None = None
    encoding_format: EncodingFormat | None = None
    embed_dtype: Literal["float32"] = "float32"
    endianness: Literal["native", "little"] = "native"


class Content(ForeignBody):
    """A text in parts."""

    content: Parts


class Document(ForeignBody):
    """A document in Cohere's form; text only."""

    text: str
    multi_modal: None = None


_Text = str | Content | Document
_ManyTexts = _Text | Annotated[list[_Text], Field(fail_fast=True)]


def _text_of(given: _Text) -> str:
    if isinstance(given, str):
        return given
    return given.text if isinstance(given, Document) else join_parts(given.content, _SEPARATOR)


def _texts_of(given: _ManyTexts) -> list[str]:
    return [_text_of(one) for one in given] if isinstance(given, list) else [_text_of(given)]


class _PairBody(PoolingBody):
    max_tokens_per_query: Literal[0] | None = None
    max_tokens_per_doc: Literal[0] | None = None
    instruction: None = None


class PairsRequest(_PairBody):
    """Prompts and responses, under any of the names that vLLM knows: one prompt for all, or one for each response."""

    queries: _ManyTexts = Field(validation_alias=AliasChoices("queries", "text_1", "data_1"))
    documents: _ManyTexts = Field(validation_alias=AliasChoices("documents", "items", "text_2", "data_2"))

    def items(self) -> list[ScoreItem]:
        """The pairs. Raises: InvalidRequest: none, or numbers of prompts and responses that do not go together."""
        prompts, responses = _texts_of(self.queries), _texts_of(self.documents)
        if not responses or len(prompts) not in (1, len(responses)):
            raise InvalidRequest("give one prompt for all responses, or as many prompts as responses; at least one")
        prompts = prompts if len(prompts) == len(responses) else prompts * len(responses)
        return [ScoreItem(prompt=prompt, response=text) for prompt, text in zip(prompts, responses, strict=True)]


class RerankRequest(_PairBody):
    """Candidates of one prompt. top_n: how many of the best to answer with; 0 for all."""

    query: _Text
    documents: _Text | Annotated[list[_Text], Field(min_length=1, fail_fast=True)]
    top_n: int = Field(0, ge=0)

    def items(self) -> list[ScoreItem]:
        """The candidates."""
        prompt = _text_of(self.query)
        return [ScoreItem(prompt=prompt, response=text) for text in _texts_of(self.documents)]
