"""The wire types of Quorum's native routes: what a client sends and what the server answers.

    ScoreRequest   -> POST /score    -> ScoreResponse
    RankRequest    -> POST /rank     -> RankResponse
    CompareRequest -> POST /compare  -> CompareResponse

The single source of truth for both sides. Requests refuse unknown fields, so that a misspelt option is an
error and not silently ignored; responses ignore them, so that an older client can read a newer server.
Knows no HTTP and no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quorum_client.modes import Mode

Center = Literal["none", "group", "reference"]
Truncate = Literal["left", "right", "error"]
Role = Literal["system", "user", "assistant", "tool"]


class RequestModel(BaseModel):
    """Base of what a client sends."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ResponseModel(BaseModel):
    """Base of what a server answers."""

    # No NaN or infinity on either side: a score that is not a number is an item's `error`, never a number.
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Message(RequestModel):
    """One turn of a dialogue."""

    role: Role
    content: str


# Lists end at their first bad item: a list of a million would take seconds and a gigabyte to describe.
Prompt = str | Annotated[list[Message], Field(min_length=1, fail_fast=True)]
"""A prompt: one user turn as a string, or a dialogue as messages."""


class ScoreItem(RequestModel):
    """What is scored: (prompt, response), or text already templated, or token ids. Exactly one of the three.

    `reference` is the reference response of the prompt, for center = "reference". `group` tells, for center = "group",
    which texts or token ids belong to one prompt: those of equal groups.

    A text may have a `prompt` too, as text: what it begins with, special tokens aside. Then the prompt is cut first
    where the text is too long, a text with nothing behind its prompt is refused, and the prompt is its group. Where the
    text begins otherwise, it is one piece.
    """

    prompt: Prompt | None = None
    response: str | None = None
    reference: str | None = None
    text: str | None = None
    token_ids: Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(fail_fast=True)] | None = None
    group: str | None = None

    @model_validator(mode="after")
    def _check_shape(self) -> ScoreItem:
        is_text_with_prompt = self.text is not None and isinstance(self.prompt, str)
        pair = self.response is not None or (self.prompt is not None and not is_text_with_prompt)
        given = [pair, self.text is not None, self.token_ids is not None]
        if sum(given) != 1:
            raise ValueError("give exactly one of (prompt and response), text (and its prompt, as text), token_ids")
        if pair and (self.prompt is None or self.response is None):
            raise ValueError("prompt and response go together")
        if self.reference is not None and not pair:
            raise ValueError("reference goes with prompt and response")
        if self.group is not None and self.prompt is not None:
            raise ValueError("group goes with text or token_ids; a prompt is its own group")
        return self


class ScoringOptions(RequestModel):
    """Options that every native scoring route takes."""

    ensemble: str | None = Field(
        None, min_length=1, description="name or name@version; the only one loaded if left out"
    )
    truncate: Truncate | None = Field(
        None, description="which end of an over-long prompt is cut; the bundle's if left out"
    )


class RewardOptions(ScoringOptions):
    """How member scores become rewards; the bundle's defaults where left out."""

    mode: Mode | None = None
    beta: float | None = Field(None, ge=0, allow_inf_nan=False, strict=True)
    normalize: bool = Field(True, strict=True, description="apply each member's calibration: (raw - mean) / scale")


class ScoreRequest(RewardOptions):
    """Body of POST /score."""

    inputs: list[ScoreItem] = Field(min_length=1, fail_fast=True)
    center: Center = "none"


class RankRequest(RewardOptions):
    """Body of POST /rank: order the candidates of one prompt."""

    prompt: Prompt
    candidates: list[str] = Field(min_length=1, fail_fast=True)
    reference: str | None = Field(None, description="reference response, for center = reference")
    center: Center | None = Field(None, description="group if left out; none for a single candidate")


class ComparePair(RequestModel):
    """One comparison: is response `a` better than response `b`?"""

    prompt: Prompt
    a: str
    b: str


class CompareRequest(ScoringOptions):
    """Body of POST /compare: one pair inline, or a list under `pairs`."""

    prompt: Prompt | None = None
    a: str | None = None
    b: str | None = None
    pairs: Annotated[list[ComparePair], Field(min_length=1, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _check_shape(self) -> CompareRequest:
        inline = [self.prompt is not None, self.a is not None, self.b is not None]
        if self.pairs is not None and any(inline):
            raise ValueError("give either prompt, a and b, or pairs")
        if self.pairs is None and not all(inline):
            raise ValueError("prompt, a and b go together (or give pairs)")
        return self

    def as_pairs(self) -> list[ComparePair]:
        """The comparisons as a list, whichever way they were given."""
        if self.pairs is not None:
            return self.pairs
        return [ComparePair.model_validate({"prompt": self.prompt, "a": self.a, "b": self.b})]


class ItemError(ResponseModel):
    """Why one item has no score, while its neighbours may have theirs."""

    code: str
    message: str


class ScoreResult(ResponseModel):
    """One item's score.

    `members` are the K scores after normalisation and centring, in the order of the ensemble's members;
    `mean`, `std` (ddof = 1; null with one member) and `score` (by the mode) follow from them.
    All numbers are null where `error` is not.
    """

    score: float | None = None
    mean: float | None = None
    std: float | None = None
    members: list[float] | None = None
    num_tokens: int = 0
    truncated: bool = False
    error: ItemError | None = None


class EnsembleRef(ResponseModel):
    """The ensemble version that produced an answer."""

    name: str
    version: str


class Usage(ResponseModel):
    """Tokens submitted, and tokens that the engine computed for them (fewer where work was shared)."""

    prompt_tokens: int
    computed_tokens: int


class ScoreResponse(ResponseModel):
    """Answer of POST /score. With center other than none the scores are relative to the group or reference."""

    id: str
    ensemble: EnsembleRef
    mode: Mode
    beta: float | None
    center: Center
    results: list[ScoreResult]
    usage: Usage


class RankResponse(ResponseModel):
    """Answer of POST /rank: `order` lists candidate indices from best to worst, those with an error last.

    `best` is the first of `order`.
    """

    id: str
    ensemble: EnsembleRef
    mode: Mode
    beta: float | None
    center: Center
    best: int
    order: list[int]
    results: list[ScoreResult]
    usage: Usage


class Margin(ResponseModel):
    """Margin of a over b: mean and std (ddof = 1; null with one member) over the members."""

    mean: float
    std: float | None


class Comparison(ResponseModel):
    """P(a beats b) = sigmoid(tau * margin.mean), and each member's margin. Null where `error` is not."""

    probability: float | None = None
    margin: Margin | None = None
    members: list[float] | None = None
    truncated: bool = False
    error: ItemError | None = None


class CompareResponse(Comparison):
    """Answer of POST /compare for one inline pair."""

    id: str
    ensemble: EnsembleRef
    usage: Usage


class CompareListResponse(ResponseModel):
    """Answer of POST /compare for a list under `pairs`."""

    id: str
    ensemble: EnsembleRef
    results: list[Comparison]
    usage: Usage


class MemberInfo(ResponseModel):
    """A member as listed by GET /v1/ensembles."""

    name: str
    calibration_mean: float
    calibration_scale: float


class EnsembleInfo(ResponseModel):
    """An ensemble as listed by GET /v1/ensembles."""

    name: str
    version: str
    kind: str
    source: str
    members: list[MemberInfo]
    pooling: str
    max_length: int
    default_mode: Mode
    default_beta: float | None
    pair_temperature: float
    prompt_fingerprint: str
    dtype: str
    device: str
    attention: str = Field(description="packed, or unpadded where the backbone cannot be packed exactly")
    metrics: dict[str, Any] = Field(default_factory=dict)
    std_quantiles: dict[str, float] = Field(
        default_factory=dict,
        description='quantile (as "0.99") to std over members, on the data that it was calibrated on',
    )


class ErrorBody(ResponseModel):
    """The content of every error answer."""

    code: str
    message: str
    retryable: bool
    request_id: str | None = None


class ErrorResponse(ResponseModel):
    """The one shape of every error answer."""

    error: ErrorBody
