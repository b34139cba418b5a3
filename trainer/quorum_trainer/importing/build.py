"""From a plan to a bundle that is proven: its golden scores are those of Transformers itself.

    Plan  --Transformers, one text at a time-->  golden scores  --draft, loaded and self-tested-->  bundle

The draft is a bundle in a temporary folder beside the target: loading it runs the self-test, that is, Quorum's forward
pass against Transformers' scores, through the prompt format. With pairs, it is calibrated by the scores of the draft.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from quorum_client.types import ScoreItem
from quorum_model.bundle.files import CARD_NAME, MANIFEST_NAME
from quorum_model.bundle.golden import GoldenItem, write_golden
from quorum_model.bundle.manifest import Manifest, MemberEntry
from quorum_model.bundle.read import Bundle
from quorum_model.bundle.write import write_bundle
from quorum_model.errors import BundleError, Unsupported
from quorum_model.loading import load_member_scorer
from quorum_model.packing import Pooling
from quorum_model.prompts import EncodedItem, PromptEncoder
from quorum_trainer.data import DataError, encode_pairs, hash_file, read_pairs
from quorum_trainer.importing.adapters import plan_adapters
from quorum_trainer.importing.models import plan_models
from quorum_trainer.importing.plan import InvalidOption, MemberPlan, Plan
from quorum_trainer.importing.prompt_format import PAIRS
from quorum_trainer.importing.sources import find_source
from quorum_trainer.importing.transformers_scores import own_score
from quorum_trainer.measure import Measured, measure


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What the user may say; None leaves it to the model.

    base: of adapters. pooling, template: other than the model's own. pairs: held-out pairs to calibrate on.
    """

    name: str
    base: str | None = None
    max_length: int | None = None
    truncation: Literal["left", "right"] = "left"
    pooling: Pooling | None = None
    template: Path | None = None
    pairs: Path | None = None
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """bundle: as it reads back. prompt_format: in words. measured: on the pairs, where there were any."""

    bundle: Bundle
    prompt_format: str
    measured: Measured | None


def import_models(given: Sequence[str], target: Path, options: ImportOptions) -> Imported:
    """Make a bundle of reward models or adapters.

    Args:
        given: folders or hub ids, in the order of the members.
        target: the bundle's folder; must not exist.
        options: see there.

    Raises:
        BundleError: something cannot be imported, and why; nothing is left behind.
        InvalidRequest: an option or a data file that does not fit.
    """
    if os.path.lexists(target):
        raise BundleError(f"{target} exists already; choose another --out")
    # Small files before large ones: what is wrong with them should not be said after minutes.
    template = _read_template(options.template)
    pairs = read_pairs(options.pairs) if options.pairs is not None else None
    plan = _plan(given, options, template)
    max_length = _max_length(plan, options.max_length)
    encoder = plan.token_format.encoder(plan.tokenizer, max_length=max_length, truncation=options.truncation)
    golden = _golden_items(plan, encoder)
    manifest = _manifest(plan, options, max_length)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=f".{target.name}-import-") as staging:

        def write_draft(root: Path) -> None:
            plan.write_parts(root)
            write_golden(root, golden)

        draft = write_bundle(Path(staging) / "draft", manifest, write_draft)
        scorer = load_member_scorer(draft, device="cpu", dtype="float32")
        measured = None
        if pairs is not None and options.pairs is not None:
            encoded = encode_pairs(encoder, pairs, options.pairs.name)
            raw = scorer.score([pair.chosen for pair in encoded] + [pair.rejected for pair in encoded]).raw.astype(
                np.float64
            )
            measured = measure(raw[:, : len(encoded)], raw[:, len(encoded) :], encoded)
            manifest = _calibrated(manifest, measured, options.pairs)
        bundle = write_bundle(target, manifest, lambda root: _move_parts(draft.path, root))
    return Imported(bundle, plan.members[0].convention.description, measured)


def _plan(given: Sequence[str], options: ImportOptions, template: str | None) -> Plan:
    sources = [find_source(name) for name in given]
    repeated = {source.given for source in sources if sum(other.folder == source.folder for other in sources) > 1}
    if repeated:
        raise InvalidOption(f"SOURCE: {min(repeated)} is given more than once: equal members never disagree")
    if all(source.is_adapter for source in sources):
        return plan_adapters(sources, base=options.base, pooling=options.pooling, template=template)
    for source in sources:
        if source.is_adapter:
            raise InvalidOption(f"SOURCE: {source.given} is an adapter, others are whole models: import one kind")
    if options.base is not None:
        raise InvalidOption("--base is for adapters; a whole model has its own backbone")
    return plan_models(sources, pooling=options.pooling, template=template)


def _read_template(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--template: {path.name} cannot be read: {error}") from error


def _max_length(plan: Plan, given: int | None) -> int:
    """What was asked for, or else all that model and tokenizer take."""
    if given is not None:
        if plan.max_positions is not None and given > plan.max_positions:
            raise InvalidOption(f"--max-length is {given}, but the model has positions for {plan.max_positions} tokens")
        return given
    if plan.usual_length is None:
        raise InvalidOption("--max-length: neither the model nor its tokenizer says how long a text may be")
    return plan.usual_length


def _manifest(plan: Plan, options: ImportOptions, max_length: int) -> Manifest:
    """Before any measurement: identity calibration, so that scores are the models' own logits."""
    token_format = plan.token_format
    return Manifest(
        name=options.name,
        kind=plan.kind,
        backbone=plan.backbone,
        pooling=plan.pooling,
        max_length=max_length,
        truncation=options.truncation,
        bos_ids=token_format.bos_ids,
        eos_ids=token_format.eos_ids,
        prompt_format=token_format.prompt_format,
        members=[
            # How a member was trained is not known here; its seed is a placeholder of the schema.
            MemberEntry(name=member.name, adapter=member.adapter, backbone=member.backbone, head=member.head, seed=0)
            for member in plan.members
        ],
        licence=options.licence,
    )


def _calibrated(manifest: Manifest, measured: Measured, pairs: Path) -> Manifest:
    members = [
        member.model_copy(update={"calibration": calibration})
        for member, calibration in zip(manifest.members, measured.calibration, strict=True)
    ]
    changes = {
        "members": members,
        "pair_temperature": measured.pair_temperature,
        "reference_stats": measured.reference_stats,
        "metrics": {**measured.metrics, "held_out_file": {"sha256": hash_file(pairs)}},
    }
    return manifest.model_copy(update=changes)


def _golden_items(plan: Plan, encoder: PromptEncoder) -> list[GoldenItem]:
    """Every member's scores of a few texts by its own libraries, in its own tokenizer's ids; one model at a time."""
    encoded = [encoder.encode(ScoreItem(prompt=prompt, response=response)) for prompt, response in PAIRS]
    pooling = None if plan.is_own_pooling else plan.pooling
    columns = [_own_scores(member, encoded, pooling) for member in plan.members]
    return [
        GoldenItem(token_ids=item.ids, scores=list(scores))
        for item, scores in zip(encoded, zip(*columns, strict=True), strict=True)
    ]


def _own_scores(member: MemberPlan, encoded: Sequence[EncodedItem], pooling: Pooling | None) -> list[float]:
    model = member.load()
    scores = []
    for (prompt, response), item in zip(PAIRS, encoded, strict=True):
        # A cut sequence exists in the bundle alone.
        ids = item.ids if item.truncated else member.convention.ids(member.tokenizer, prompt, response)
        score = own_score(model, ids, ignored_id=member.convention.ignored_id, pooling=pooling)
        if not math.isfinite(score):
            raise Unsupported(f"member {member.name} scores an ordinary text {score}")
        scores.append(score)
    return scores


def _move_parts(draft: Path, root: Path) -> None:
    for path in sorted(draft.iterdir()):
        if path.name not in (MANIFEST_NAME, CARD_NAME):
            shutil.move(path, root / path.name)
