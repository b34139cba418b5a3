"""A bundle that is to be made from what was found: its members, their files, and how Transformers loads each.

    [Source]  --models.plan_models | adapters.plan_adapters-->  Plan  --build.py-->  bundle

Data alone, and what both kinds of plan share. Knows nothing of scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quorum_client.errors import InvalidRequest
from quorum_model.backbone import Backbone
from quorum_model.bundle.manifest import NAME_PATTERN, BackboneRef, Kind
from quorum_model.errors import Unsupported
from quorum_model.packing import Pooling
from quorum_trainer.importing.prompt_format import Convention, TokenFormat, read_convention, to_format
from quorum_trainer.importing.sources import Source

# A tokenizer that knows no limit says so by an absurdly large one.
_NO_LIMIT = 10**9


class InvalidOption(InvalidRequest):
    """An option of `quorum import` that does not fit what is imported; the message names it."""

    code = "invalid_option"


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """One member to be.

    load: its model by Transformers and PEFT. tokenizer: its own. head (a file), adapter and backbone (folders): places
    inside the bundle.
    """

    name: str
    load: Callable[[], Any]
    convention: Convention
    tokenizer: Any
    head: str
    adapter: str | None = None
    backbone: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole bundle.

    tokenizer: the one that the bundle will use. pooling: the architecture's own, unless `is_own_pooling` is False.
    max_positions: bound of learned positions. usual_length: what config and tokenizer call the longest text.
    write_parts: writes backbones, heads and adapters into the bundle's folder.
    """

    kind: Kind
    backbone: BackboneRef
    members: list[MemberPlan]
    token_format: TokenFormat
    tokenizer: Any
    pooling: Pooling
    is_own_pooling: bool
    max_positions: int | None
    usual_length: int | None
    write_parts: Callable[[Path], None]


def check_name(name: str) -> str:
    """An ensemble's name.

    Raises:
        InvalidOption: it could not stand in a URL.
    """
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise InvalidOption(f"--name: {name!r} is no name of an ensemble: letters, digits, '.', '_' and '-', up to 64")
    return name


def usual_length(config: Any, tokenizer: Any, max_positions: int | None) -> int | None:
    """The longest text by a model's positions, config and tokenizer; None where none of them says."""
    limits = [max_positions or getattr(config.get_text_config(), "max_position_embeddings", None),
              tokenizer.model_max_length]  # fmt: skip
    return min((int(limit) for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)


def member_names(count: int) -> list[str]:
    """m00, m01, …, of equal width."""
    width = max(2, len(str(count - 1)))
    return [f"m{index:0{width}d}" for index in range(count)]


def ignored_id(pad_id: int | None, pooling: Pooling, backbone: Backbone) -> int | None:
    """The token id that a causal model's own class skips at a sequence's end when it looks for the last one."""
    return pad_id if pooling == "last" and hasattr(backbone.model, "score") else None


def convention_of(source: Source, tokenizer: Any, template: str | None, skipped: int | None) -> Convention:
    """The convention of one source; errors name it."""
    try:
        return read_convention(tokenizer, template=template, is_by_trl=source.is_by_trl, ignored_id=skipped)
    except Unsupported as error:
        raise Unsupported(f"{source.given}: {error.message}") from error


def common_format(
    sources: Sequence[Source], conventions: Sequence[Convention], tokenizers: Sequence[Any], served: Any
) -> TokenFormat:
    """The one format of all members.

    Raises:
        Unsupported: a member was trained in another format than the first, or tokenises otherwise.
    """
    formats = []
    for source, convention, own in zip(sources, conventions, tokenizers, strict=True):
        if own is not served and own.get_vocab() != served.get_vocab():
            raise Unsupported(f"{source.given}: its tokenizer has another vocabulary than the bundle's")
        try:
            formats.append(to_format(convention, own, served))
        except Unsupported as error:
            raise Unsupported(f"{source.given}: {error.message}") from error
        if formats[-1] != formats[0]:
            raise Unsupported(
                f"{source.given}: its prompt format (chat template, BOS, EOS, pad token) is not that of "
                f"{sources[0].given}: members of one ensemble read the same token ids"
            )
    return formats[0]
