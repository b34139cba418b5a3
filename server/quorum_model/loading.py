"""From a bundle on disk to an ensemble that scores, proven before it is used.

    Bundle  --load_member_scorer (hashes, self-test, token budget)-->  MemberScorer

Knows nothing of text, queues or HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quorum_model.adapters import AdapterState, merge_adapter, read_adapter
from quorum_model.backbone import Backbone, load_backbone
from quorum_model.bundle.files import hash_file
from quorum_model.bundle.golden import GoldenItem, check_apart, read_golden
from quorum_model.bundle.parts import read_heads
from quorum_model.bundle.read import Bundle
from quorum_model.casting import cast_weights
from quorum_model.compiled import compile_layers, pays_to_compile
from quorum_model.errors import BundleCorrupt, BundleError, HeadMissing, SelfTestFailed, Unsupported
from quorum_model.member_scorer import MemberScorer, is_out_of_memory
from quorum_model.model import EnsembleModel
from quorum_model.shared_backbones import SharedBackbones
from quorum_model.singles import ScoringModel, SinglesModel
from quorum_model.sources import check_weights, resolve_backbone
from quorum_model.token_budget import choose_token_budget

_UNTRIED_BUDGET = 8192
_LONG_PASS_S = 0.25  # what it pays once is little of it, and whoever loads waits
_TRIAL_LENGTH = 128  # tokens of a usual answer with its prompt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

# How far a golden score may be off, in units of the member's own calibrated scale. fp32: other kernels, other
# summation order; bf16: 8 bits of mantissa through every layer.
_SELF_TEST_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.25}


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        Unsupported: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise Unsupported(f"unknown device {device}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise Unsupported("this machine has no CUDA device")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 on a CPU, where one compares with Transformers' own numbers.

    Raises:
        Unsupported: not one of float32, bfloat16, float64.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise Unsupported(f"unknown dtype {dtype}; expected auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def make_sharing_loader() -> Callable[..., MemberScorer]:
    """`load_member_scorer` for a process that holds several ensembles: those on one backbone share its memory."""
    return partial(load_member_scorer, backbones=SharedBackbones())


def load_member_scorer(
    bundle: Bundle,
    *,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int | None = None,
    share_prefixes: bool = True,
    store_bytes: int | None = None,
    backbones: SharedBackbones | None = None,
) -> MemberScorer:
    """Load an ensemble's backbone and members and prove that it gives the scores it should.

    Args:
        bundle: already verified.
        device: auto, cpu, cuda, cuda:N.
        dtype: auto, float32, bfloat16, float64.
        token_budget: most computed tokens in one pass; None tries what is fastest here, in a second or two.
        share_prefixes: see `MemberScorer`.
        store_bytes: see `MemberScorer`; None takes 1 GiB on a CPU, and on CUDA a tenth of what is free.
        backbones: those in memory already, to share; None loads one of its own.

    Raises:
        BackboneMismatch: the backbone's weights are not those of the manifest.
        HeadMissing: a member without a trained head.
        SelfTestFailed: the golden inputs do not get their golden scores.
        BundleError: anything else that would make scores wrong.
    """
    target = choose_device(device)
    model = load_scoring_model(bundle, choose_dtype(dtype, target), target, backbones)
    golden = read_golden(bundle)
    if any(max(item.token_ids) >= model.vocab_size for item in golden):
        raise BundleCorrupt(f"golden.json has token ids beyond the backbone's {model.vocab_size}")
    # Without a store: what is scored alone must not go on from what was scored together.
    untried = MemberScorer(model, bundle, token_budget or _UNTRIED_BUDGET, share_prefixes=share_prefixes)
    _self_test(untried, golden)
    if token_budget is None:
        text = [token for item in golden for token in item.token_ids]
        length = min(_TRIAL_LENGTH, bundle.manifest.max_length)
        token_budget = choose_token_budget(partial(_seconds_of_pass, model, text, length))
    store_bytes = _default_store_bytes(target) if store_bytes is None else store_bytes
    return MemberScorer(model, bundle, token_budget, share_prefixes=share_prefixes, store_bytes=store_bytes)


def _default_store_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // 10 if device.type == "cuda" else 2**30


def _seconds_of_pass(model: ScoringModel, text: list[int], length: int, num_tokens: int) -> float | None:
    """How long a pass of so many tokens takes, or None where memory does not suffice; of a text, over and over."""
    tokens = (text * (1 + num_tokens // len(text)))[: num_tokens // length * length]
    row = [tokens[start : start + length] for start in range(0, len(tokens), length)]

    def once() -> float:
        started = time.perf_counter()
        model([row]).cpu()
        return time.perf_counter() - started

    try:
        with torch.inference_mode():
            first = once()  # of its size: it also pays for memory and kernels that later ones find ready
            return min(first, once()) if first < _LONG_PASS_S else first
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def load_scoring_model(
    bundle: Bundle, dtype: torch.dtype, device: torch.device, backbones: SharedBackbones | None = None
) -> ScoringModel:
    """The ensemble of a bundle in memory; the self-test is the caller's."""
    if bundle.manifest.kind == "singles":
        return _load_singles(bundle, dtype, device)
    model = load_ensemble_model(bundle, dtype, device, backbones)
    if pays_to_compile(device, dtype):
        compile_layers(model)
    return model


def load_ensemble_model(
    bundle: Bundle, dtype: torch.dtype, device: torch.device, backbones: SharedBackbones | None = None
) -> EnsembleModel:
    """The ensemble of a bundle whose members share a backbone: of any kind but `singles`."""
    manifest = bundle.manifest
    if manifest.kind == "singles":
        raise Unsupported("kind 'singles' has no shared backbone")

    def load() -> Backbone:
        backbone = load_shared_backbone(bundle)
        cast_weights(backbone.model, dtype, device)
        return backbone

    backbone = load() if backbones is None else backbones.get(_sharing_key(bundle, dtype, device), load)
    _require_positions(backbone, manifest.max_length)
    adapters, heads = _members(bundle)
    lora = [adapter.lora for adapter in adapters] if adapters else None
    return EnsembleModel(backbone, lora, heads, manifest.pooling).eval().requires_grad_(False)


def load_shared_backbone(bundle: Bundle) -> Backbone:
    """The backbone that a bundle's members share, in fp32, with the shared adapter merged into it.

    Raises:
        BackboneMismatch: its weights are not those of the manifest.
        Unsupported: it has no positions for the bundle's max_length.
    """
    manifest = bundle.manifest
    folder = _backbone_folder(bundle)
    check_weights(folder, manifest.backbone)
    backbone = load_backbone(folder)
    if manifest.shared_adapter is not None:
        # Merged in fp32, before the weights are rounded to a serving dtype.
        merge_adapter(backbone.model, read_adapter(bundle.path / manifest.shared_adapter))
    _require_positions(backbone, manifest.max_length)
    return backbone


def _sharing_key(bundle: Bundle, dtype: torch.dtype, device: torch.device) -> tuple[object, ...]:
    """Equal for backbones that are equal in memory: weights, config, what is merged into them, dtype and device."""
    manifest = bundle.manifest
    folder = _backbone_folder(bundle)
    config = hash_file(folder, "config.json")
    merged = [sha256 for name, sha256 in sorted(manifest.files.items())
              if manifest.shared_adapter is not None and name.startswith(f"{manifest.shared_adapter}/")]  # fmt: skip
    return (manifest.backbone.weights_sha256, config, *merged, dtype, device)


def _backbone_folder(bundle: Bundle) -> Path:
    reference = bundle.manifest.backbone
    return resolve_backbone(reference.source, revision=reference.revision, bundle_path=bundle.path)


def _load_singles(bundle: Bundle, dtype: torch.dtype, device: torch.device) -> SinglesModel:
    """One model after another, each rounded and moved before the next is loaded: one fp32 copy at a time."""
    manifest = bundle.manifest
    check_weights(bundle.path / str(manifest.members[0].backbone), manifest.backbone)
    models: list[EnsembleModel] = []
    for member, head in zip(manifest.members, read_heads(bundle.path, manifest.members), strict=True):
        backbone = load_backbone(bundle.path / str(member.backbone))
        _require_positions(backbone, manifest.max_length, f"member {member.name}: ")
        if models and backbone.vocab_size < models[0].backbone.vocab_size:
            # Token ids are checked against the first member's.
            raise Unsupported(
                f"member {member.name} knows {backbone.vocab_size} token ids, the first member "
                f"{models[0].backbone.vocab_size}: they cannot have one tokenizer"
            )
        cast_weights(backbone.model, dtype, device)
        models.append(EnsembleModel(backbone, None, [head], manifest.pooling).eval().requires_grad_(False))
        if pays_to_compile(device, dtype):
            compile_layers(models[-1])
    return SinglesModel(models).eval()


def _require_positions(backbone: Backbone, max_length: int, whose: str = "") -> None:
    if backbone.max_positions is not None and max_length > backbone.max_positions:
        raise Unsupported(
            f"{whose}max_length is {max_length}, but the backbone has positions for {backbone.max_positions} tokens"
        )


def _members(bundle: Bundle) -> tuple[list[AdapterState], list[Mapping[str, Tensor]]]:
    members = bundle.manifest.members
    if bundle.manifest.kind in ("lora", "merged"):
        adapters = read_member_adapters(bundle)
        return adapters, [adapter.head for adapter in adapters]
    return [], read_heads(bundle.path, members)


def read_member_adapters(bundle: Bundle) -> list[AdapterState]:
    """The adapters of a bundle whose members have some, each with its head.

    Raises:
        HeadMissing: a member without one.
    """
    members = bundle.manifest.members
    adapters = [read_adapter(bundle.path / str(member.adapter)) for member in members]
    for member, adapter in zip(members, adapters, strict=True):
        if not adapter.head:
            raise HeadMissing(f"member {member.name} has no trained head")
    return adapters


def _self_test(scorer: MemberScorer, golden: Sequence[GoldenItem]) -> None:
    """Golden inputs must get their golden scores, in one pass and each alone: a score has no batch companions."""
    tolerance = _SELF_TEST_TOLERANCE[DTYPES[scorer.dtype]]
    expected = np.array([item.scores for item in golden]).T
    scale = np.array([member.calibration.scale for member in scorer.manifest.members])[:, None]
    if scorer.manifest.reference_stats is None:  # an import that nothing was measured on: its scale is only a 1
        scale = np.maximum(scale, expected.std(axis=1, keepdims=True))
    sequences = [item.token_ids for item in golden]
    together = scorer.score(sequences).raw
    alone = np.concatenate([scorer.score([sequence]).raw for sequence in sequences], axis=1)
    for name, actual in (("in one batch", together), ("alone", alone)):
        if expected.shape != actual.shape:
            raise BundleError("golden.json does not hold one score a member")
        error = float(np.max(np.abs(actual - expected) / scale))
        if not error <= tolerance:
            raise SelfTestFailed(
                f"golden inputs scored {name} are off by {error:.3g} of a member's scale (allowed {tolerance:g}): "
                "the weights or this machine's arithmetic are not what the bundle was made with"
            )
    check_apart(expected, together, [member.name for member in scorer.manifest.members])
