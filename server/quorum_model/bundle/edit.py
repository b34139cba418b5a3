"""A new bundle from an old one, with a member added, replaced or removed.

    Bundle, member of another Bundle  --put_member, remove_member-->  Bundle in a new folder, most files hard-linked

No scores are computed: golden scores and calibration come along with each member. What was fitted to the members
together is dropped unless it is given anew: pair temperature, default mode and beta, reference statistics, metrics.
Knows no models.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quorum_client.modes import Mode
from quorum_model.bundle.files import CARD_NAME
from quorum_model.bundle.golden import GoldenItem, read_golden, write_golden
from quorum_model.bundle.manifest import Manifest, MemberEntry
from quorum_model.bundle.read import GOLDEN_NAME, Bundle
from quorum_model.bundle.write import write_bundle
from quorum_model.errors import BundleError, Unsupported

_HEADS_NAME = "heads.safetensors"


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is fitted to the members of an ensemble together; what is left out is as for an ensemble never fitted."""

    pair_temperature: float = 1.0
    default_mode: Mode = "mean"
    default_beta: float | None = None


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a member of the new bundle comes from. entry: as the new manifest has it. index: its place in `bundle`."""

    entry: MemberEntry
    bundle: Bundle
    index: int


def put_member(base: Bundle, target: Path, name: str, donor: Bundle, donor_name: str, fitted: Fitted) -> Bundle:
    """Write a bundle in which member `name` is the donor's `donor_name`: in the old one's place, or added at the end.

    Args:
        base: the old bundle; of kind lora or linear.
        target: a new folder.
        name: of the member in the new bundle.
        donor: of the same kind, on the same backbone, with the same prompt format and pooling.
        donor_name: of the member there.
        fitted: to the new members together.

    Raises:
        BundleError: there is no such member, the two bundles do not fit together, or have no golden input in common.
        Unsupported: a kind whose members cannot be exchanged.
    """
    _check_kind(base)
    _check_fit(base, donor)
    place = _find(donor, donor_name)
    head = _HEADS_NAME
    changes: dict[str, Any] = {"name": name}
    if base.manifest.kind == "lora":
        head = f"members/{name}/adapter_model.safetensors"
        changes["adapter"] = f"members/{name}"
    entry = donor.manifest.members[place].model_copy(update=changes | {"head": head})
    new = _Source(entry, donor, place)
    sources = [_Source(old, base, index) for index, old in enumerate(base.manifest.members)]
    places = [source.entry.name for source in sources]
    if name in places:
        sources[places.index(name)] = new
    else:
        sources.append(new)
    return _write(base, target, sources, fitted, donor)


def remove_member(base: Bundle, target: Path, name: str, fitted: Fitted) -> Bundle:
    """Write a bundle without member `name`; arguments and errors as for `put_member`."""
    _check_kind(base)
    gone = _find(base, name)
    sources = [_Source(entry, base, index) for index, entry in enumerate(base.manifest.members) if index != gone]
    return _write(base, target, sources, fitted)


def _check_kind(base: Bundle) -> None:
    if base.manifest.kind not in ("lora", "linear"):
        raise Unsupported(f"members of kind '{base.manifest.kind}' cannot be added, replaced or removed")


def _check_fit(base: Bundle, donor: Bundle) -> None:
    ours, theirs = base.manifest, donor.manifest
    pairs = {
        "kind": (ours.kind, theirs.kind),
        "backbone's weights": (ours.backbone.weights_sha256, theirs.backbone.weights_sha256),
        "tokenizer": (ours.backbone.tokenizer_sha256, theirs.backbone.tokenizer_sha256),
        "shared adapter": (_shared_files(ours), _shared_files(theirs)),
        "pooling": (ours.pooling, theirs.pooling),
        "prompt format": (ours.prompt_format.fingerprint, theirs.prompt_format.fingerprint),
    }
    different = [name for name, (one, other) in pairs.items() if one != other]
    if different:
        raise BundleError(f"the member comes from a bundle with another {different[0]}: scores would be wrong")


def _shared_files(manifest: Manifest) -> dict[str, str]:
    folder = manifest.shared_adapter
    return {} if folder is None else {
        name.removeprefix(folder): sha256 for name, sha256 in manifest.files.items() if name.startswith(f"{folder}/")
    }  # fmt: skip


def _find(bundle: Bundle, name: str) -> int:
    names = [member.name for member in bundle.manifest.members]
    if name not in names:
        raise BundleError(f"there is no member {name} in '{bundle.manifest.name}', which has {', '.join(names)}")
    return names.index(name)


def _write(
    base: Bundle, target: Path, sources: Sequence[_Source], fitted: Fitted, donor: Bundle | None = None
) -> Bundle:
    manifest = _manifest(base, sources, fitted, donor)
    golden = _golden(base, sources)

    def write_files(root: Path) -> None:
        own = {CARD_NAME, GOLDEN_NAME}
        if manifest.kind == "linear":
            from quorum_model.bundle.parts import read_heads, save_heads  # brings torch, which a server does without

            own.add(_HEADS_NAME)
            heads = [read_heads(one.bundle.path, one.bundle.manifest.members)[one.index] for one in sources]
            save_heads(root / _HEADS_NAME, {one.entry.name: head for one, head in zip(sources, heads, strict=True)})
        old = tuple(f"{member.adapter}/" for member in base.manifest.members if member.adapter is not None)
        for relative in base.manifest.files:
            if relative not in own and not relative.startswith(old):
                _link(base.path / relative, root / relative)
        for one in sources:
            was = one.bundle.manifest.members[one.index].adapter
            for relative in one.bundle.manifest.files if was is not None else ():
                if relative.startswith(f"{was}/"):
                    _link(one.bundle.path / relative, root / f"{one.entry.adapter}{relative.removeprefix(str(was))}")
        write_golden(root, golden)

    return write_bundle(target, manifest, write_files)


def _manifest(base: Bundle, sources: Sequence[_Source], fitted: Fitted, donor: Bundle | None) -> Manifest:
    old = base.manifest
    licences, data = [old.licence], list(old.training_data)
    if donor is not None:
        licences.append(donor.manifest.licence)
        known = {one.sha256 for one in data}
        data += [one for one in donor.manifest.training_data if one.sha256 not in known]
    named = sorted({licence for licence in licences if licence is not None})
    values = old.model_dump() | {
        "members": [one.entry.model_dump() for one in sources],
        "pair_temperature": fitted.pair_temperature,
        "default_mode": fitted.default_mode,
        "default_beta": fitted.default_beta,
        "reference_stats": None,
        "metrics": {},
        "training_data": [one.model_dump() for one in data],
        # Of two licences both hold; of a member without a stated one nothing can be said.
        "licence": " AND ".join(named) if None not in licences else None,
        "parent_version": base.version,
        "files": {},
    }
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleError(f"{'.'.join(map(str, first['loc'])) or 'members'}: {first['msg']}") from error


def _golden(base: Bundle, sources: Sequence[_Source]) -> list[GoldenItem]:
    """The golden inputs that all the bundles have, with each member's scores."""
    by_bundle = {
        one.bundle.path: {tuple(item.token_ids): item.scores for item in read_golden(one.bundle)} for one in sources
    }
    items = []
    for item in read_golden(base):
        rows = [by_bundle[one.bundle.path].get(tuple(item.token_ids)) for one in sources]
        if all(row is not None for row in rows):
            scores = [row[one.index] for row, one in zip(rows, sources, strict=True) if row is not None]
            items.append(GoldenItem(token_ids=item.token_ids, scores=scores))
    if not items:
        raise BundleError("the two bundles have no golden input in common: nothing could prove the new one")
    return items


def _link(source: Path, target: Path) -> None:
    """A hard link: no bytes are copied, and none are lost when the old bundle goes. A copy where there can be none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:  # another file system, or another user's file
        shutil.copyfile(source, target)
