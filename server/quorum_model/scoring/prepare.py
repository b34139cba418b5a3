"""The half before the forward pass: requests become distinct sequences of token ids.

    request  --encode, check, deduplicate-->  Prepared

Every default is filled in here, and what is wrong with a request as a whole is found here, before any work is queued.
Knows no scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quorum_client.errors import InvalidRequest
from quorum_client.modes import Mode, require_members, resolve_beta
from quorum_client.types import (
    Center,
    CompareRequest,
    ItemError,
    Prompt,
    RankRequest,
    RewardOptions,
    ScoreItem,
    ScoreRequest,
    Truncate,
)
from quorum_model.bundle.manifest import Manifest
from quorum_model.errors import ItemRejected

if TYPE_CHECKING:  # at run time it would bring the tokenizer's libraries
    from quorum_model.prompts import PromptEncoder


@dataclass(frozen=True, slots=True)
class ScoringContext:
    """What scoring needs of an ensemble besides its weights."""

    manifest: Manifest
    version: str
    encoder: PromptEncoder


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text of a request. column: its place in `Prepared.sequences`, or None where `error` says why not."""

    column: int | None = None
    num_tokens: int = 0
    truncated: bool = False
    error: ItemError | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """How members become a reward, with every default filled in."""

    mode: Mode
    beta: float | None
    normalize: bool
    center: Center


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, ready for the engine.

    sequences: S distinct lists of token ids to be scored. prompt_tokens: tokens submitted, duplicates included.
    """

    sequences: list[list[int]]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class PreparedRewards(Prepared):
    """A /score or /rank request.

    items: N. groups: N numbers, equal for items of one prompt. references: N, or empty where they are not centred by.
    may_stay_uncentred: the caller left `center` open, so that a lone usable candidate is still ranked.
    """

    rule: Rule
    items: list[Encoded]
    groups: list[int]
    references: list[Encoded]
    may_stay_uncentred: bool = False


@dataclass(frozen=True, slots=True)
class PreparedComparisons(Prepared):
    """A /compare request. pairs: the texts (a, b). is_list: whether it came under `pairs`."""

    pairs: list[tuple[Encoded, Encoded]]
    is_list: bool


_SCORING_FAILED = ItemError(code="scoring_failed", message="the engine fails at this item; the server's log says how")


def mark_failed(
    prepared: PreparedRewards | PreparedComparisons, columns: Collection[int]
) -> PreparedRewards | PreparedComparisons:
    """The request, with an error for every item of which the engine could not score a text.

    Args:
        prepared: see `prepare_score`.
        columns: places in `prepared.sequences` that have no scores.
    """

    def failed(text: Encoded) -> Encoded:
        return replace(text, column=None, error=_SCORING_FAILED) if text.column in columns else text

    if isinstance(prepared, PreparedComparisons):
        return replace(prepared, pairs=[(failed(a), failed(b)) for a, b in prepared.pairs])
    items = [failed(item) for item in prepared.items]
    references = [failed(reference) for reference in prepared.references]
    for index, reference in enumerate(references):
        if reference.error is _SCORING_FAILED:
            items[index] = replace(items[index], column=None, error=_SCORING_FAILED)
    return replace(prepared, items=items, references=references)


class _Collector:
    """Encodes texts and keeps each distinct sequence once."""

    def __init__(self, encoder: PromptEncoder, truncate: Truncate | None) -> None:
        self._encoder = encoder
        self._truncate = truncate
        self._columns: dict[tuple[int, ...], int] = {}
        self.sequences: list[list[int]] = []
        self.num_tokens = 0

    def add(self, item: ScoreItem) -> Encoded:
        try:
            encoded = self._encoder.encode(item, self._truncate)
        except ItemRejected as error:
            return Encoded(error=ItemError(code=error.code, message=error.message))
        column = self._columns.setdefault(tuple(encoded.ids), len(self.sequences))
        if column == len(self.sequences):
            self.sequences.append(encoded.ids)
        self.num_tokens += len(encoded.ids)
        return Encoded(column, len(encoded.ids), encoded.truncated)


def prepare_score(context: ScoringContext, request: ScoreRequest) -> PreparedRewards:
    """Encode a /score request.

    Raises:
        InvalidRequest: mode, beta and center do not fit the request or the ensemble, or no item can be scored.
    """
    return _prepare_rewards(context, request, request.inputs, request.center)


def prepare_rank(context: ScoringContext, request: RankRequest) -> PreparedRewards:
    """Encode a /rank request; `center` left open is group, or none where there is no group.

    Raises:
        InvalidRequest: mode, beta and center do not fit the request or the ensemble, or no candidate can be scored.
    """
    center = request.center or ("group" if len(request.candidates) > 1 else "none")
    items = [
        ScoreItem(prompt=request.prompt, response=candidate, reference=request.reference)
        for candidate in request.candidates
    ]
    return replace(_prepare_rewards(context, request, items, center), may_stay_uncentred=request.center is None)


def prepare_compare(context: ScoringContext, request: CompareRequest) -> PreparedComparisons:
    """Encode a /compare request.

    Raises:
        InvalidRequest: no pair can be scored.
    """
    collector = _Collector(context.encoder, request.truncate)
    pairs = []
    for pair in request.as_pairs():
        a, b = (collector.add(ScoreItem(prompt=pair.prompt, response=response)) for response in (pair.a, pair.b))
        pairs.append((_named("a", a), _named("b", b)))
    require_any([a.error or b.error for a, b in pairs])
    return PreparedComparisons(collector.sequences, collector.num_tokens, pairs, request.pairs is not None)


def _prepare_rewards(
    context: ScoringContext, request: RewardOptions, inputs: Sequence[ScoreItem], center: Center
) -> PreparedRewards:
    rule = _resolve_rule(context.manifest, request, center)
    groups = _group_by_prompt(inputs)
    _check_center(center, inputs, groups)
    collector = _Collector(context.encoder, request.truncate)
    items = [collector.add(item) for item in inputs]
    references: list[Encoded] = []
    if center == "reference":
        references = _encode_references(collector, inputs, groups)
        items = [
            item if item.error or not reference.error else Encoded(error=reference.error)
            for item, reference in zip(items, references, strict=True)
        ]
    require_any([item.error for item in items])
    return PreparedRewards(collector.sequences, collector.num_tokens, rule, items, groups, references)


def _resolve_rule(manifest: Manifest, request: RewardOptions, center: Center) -> Rule:
    mode = request.mode or manifest.default_mode
    beta = request.beta
    if beta is None and mode == manifest.default_mode:  # the bundle's beta was fitted for this mode alone
        beta = manifest.default_beta
    require_members(mode, len(manifest.members))
    return Rule(mode, resolve_beta(mode, beta), request.normalize, center)


def _group_by_prompt(inputs: Sequence[ScoreItem]) -> list[int]:
    """A number for each item, equal for equal prompts, or for equal groups of texts; items with neither stand alone."""
    numbers: dict[tuple[tuple[str, str], ...] | str | int, int] = {}

    def key(index: int, item: ScoreItem) -> tuple[tuple[str, str], ...] | str | int:
        if item.prompt is not None:
            return _turns(item.prompt)
        return index if item.group is None else item.group

    return [numbers.setdefault(key(index, item), len(numbers)) for index, item in enumerate(inputs)]


def _turns(prompt: Prompt) -> tuple[tuple[str, str], ...]:
    if isinstance(prompt, str):
        return (("user", prompt),)
    return tuple((turn.role, turn.content) for turn in prompt)


def _check_center(center: Center, inputs: Sequence[ScoreItem], groups: Sequence[int]) -> None:
    if center == "none":
        return
    if center == "reference" and any(item.prompt is None for item in inputs):
        raise InvalidRequest("center 'reference' needs a prompt and a response in every item, not text or token_ids")
    if center == "group" and any(item.prompt is None and item.group is None for item in inputs):
        raise InvalidRequest(
            "center 'group' needs a prompt and a response in every item, or a text and its prompt or group"
        )
    if center == "group" and min(Counter(groups).values()) < 2:
        raise InvalidRequest("center 'group' needs at least 2 responses to every prompt: of one, nothing is left")
    if center == "reference" and any(item.reference is None for item in inputs):
        raise InvalidRequest("center 'reference' needs a reference response in every item")


def _encode_references(collector: _Collector, inputs: Sequence[ScoreItem], groups: Sequence[int]) -> list[Encoded]:
    """The encoded reference of every item; tokenised once where items share prompt and reference."""
    known: dict[tuple[int, str], Encoded] = {}
    references = []
    for item, group in zip(inputs, groups, strict=True):
        assert item.reference is not None
        key = (group, item.reference)
        if key not in known:
            known[key] = _named("reference", collector.add(ScoreItem(prompt=item.prompt, response=item.reference)))
        references.append(known[key])
    return references


def _named(name: str, encoded: Encoded) -> Encoded:
    """Say which text of an item an error is about."""
    if encoded.error is None:
        return encoded
    return Encoded(error=ItemError(code=encoded.error.code, message=f"{name}: {encoded.error.message}"))


def require_any(errors: Sequence[ItemError | None]) -> None:
    """Fail the request as its first item did, where no item is left without an error.

    Raises:
        InvalidRequest: with the first item's code and message.
    """
    first = errors[0]
    if first is None or not all(errors):
        return
    failure = InvalidRequest(first.message)
    failure.code = first.code
    raise failure
