"""PEFT adapters with reward heads on one base: a bundle of kind `lora`.

    [Source of an adapter], base  --plan_adapters-->  Plan

The base is referred to, not copied. Ranks, targets and scalings may differ; what the folded layer would not score
exactly, `read_adapter` refuses. Knows nothing of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors.torch import save_file

from quorum_model.adapters import AdapterState, LoraWeights, read_adapter
from quorum_model.backbone import Backbone, default_pooling, load_backbone
from quorum_model.errors import BackboneNotFound, HeadMissing, Unsupported
from quorum_model.packing import Pooling
from quorum_model.sources import load_tokenizer, reference_to, resolve_backbone
from quorum_trainer.importing.plan import (
    InvalidOption,
    MemberPlan,
    Plan,
    common_format,
    convention_of,
    ignored_id,
    member_names,
    usual_length,
)
from quorum_trainer.importing.prompt_format import Convention
from quorum_trainer.importing.sources import ADAPTER_WEIGHTS, Source, read_config
from quorum_trainer.importing.transformers_scores import load_model

_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class _Base:
    """The model that all adapters sit on. source: as a manifest refers to it."""

    source: str
    revision: str | None
    folder: Path


def plan_adapters(
    sources: Sequence[Source], *, base: str | None, pooling: Pooling | None, template: str | None
) -> Plan:
    """Look at every adapter, and say what bundle they make.

    Args:
        sources: in the order of the members.
        base: a folder, a hub id or `package:NAME`; the adapters' own if None.
        pooling: other than the architecture's own.
        template: other than the tokenizer's own.

    Raises:
        InvalidOption: the adapters do not name one base, and none is given.
        BackboneNotFound: the base cannot be had, or has no fast tokenizer.
        Unsupported: an adapter that is not LoRA or would not be scored exactly, or one of another prompt format.
        HeadMissing: an adapter without its trained head.
    """
    found = _find_base(sources, base)
    base_config = read_config(found.folder, found.source)
    backbone = load_backbone(found.folder)
    states = [complete(source, read_adapter(source.folder), backbone) for source in sources]
    own_pooling = default_pooling(backbone.model)
    chosen = pooling or own_pooling
    served = load_tokenizer(found.folder)
    tokenizers = [_own_tokenizer(source) or served for source in sources]
    conventions = []
    for source, tokenizer in zip(sources, tokenizers, strict=True):
        pad_id = _pad_id(source, tokenizer if tokenizer is not served else None, base_config)
        conventions.append(convention_of(source, tokenizer, template, ignored_id(pad_id, chosen, backbone)))
    names = member_names(len(sources))
    head_modules = backbone.head.module_names  # and no more of it: the base is not kept while others are loaded

    def write_parts(root: Path) -> None:
        for name, source, state in zip(names, sources, states, strict=True):
            write_member(root / "members" / name, source, state, found.source, head_modules)

    members = [
        _member(name, found, source, convention, tokenizer)
        for name, source, convention, tokenizer in zip(names, sources, conventions, tokenizers, strict=True)
    ]
    # Before an encoder takes over the tokenizer's own limit.
    usual = usual_length(base_config, served, backbone.max_positions)
    return Plan(
        kind="lora",
        backbone=reference_to(found.source, found.folder, revision=found.revision),
        members=members,
        token_format=common_format(sources, conventions, tokenizers, served),
        tokenizer=served,
        pooling=chosen,
        is_own_pooling=chosen == own_pooling,
        max_positions=backbone.max_positions,
        usual_length=usual,
        write_parts=write_parts,
    )


def _member(name: str, base: _Base, source: Source, convention: Convention, tokenizer: Any) -> MemberPlan:
    return MemberPlan(
        name=name,
        load=partial(load_model, base.folder, source.folder),
        convention=convention,
        tokenizer=tokenizer,
        head=f"members/{name}/{ADAPTER_WEIGHTS}",
        adapter=f"members/{name}",
    )


def _find_base(sources: Sequence[Source], given: str | None) -> _Base:
    if given is None:
        named = {source.given: _named_base(source) for source in sources}
        first, revision = named[sources[0].given]
        for name, (base, base_revision) in named.items():
            if base is None:
                raise InvalidOption(f"{name} does not name its base: give it by --base")
            if (base, base_revision) != (first, revision):
                raise InvalidOption(
                    f"{sources[0].given} is on {first}, {name} on {base}: the members of one ensemble share their base "
                    "(--base says which, if both are the same model)"
                )
        assert first is not None
        given = first
    else:
        revision = None
    try:
        folder = resolve_backbone(given, revision=revision)
    except BackboneNotFound as error:
        raise BackboneNotFound(f"{error.message} (--base MODEL says where the adapters' base is)") from error
    # A folder's place must not depend on where the bundle is opened.
    is_folder = Path(given).is_dir()
    return _Base(str(folder.resolve()) if is_folder else given, None if is_folder else revision, folder)


def _named_base(source: Source) -> tuple[str | None, str | None]:
    try:
        config = PeftConfig.from_pretrained(str(source.folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unsupported(f"{source.given}: its adapter_config.json cannot be read: {error}") from error
    return config.base_model_name_or_path or None, config.revision


def _own_tokenizer(source: Source) -> Any:
    """The tokenizer that was saved with an adapter; None without one."""
    return load_tokenizer(source.folder) if (source.folder / "tokenizer_config.json").is_file() else None


def _pad_id(source: Source, own_tokenizer: Any, base_config: Any) -> int | None:
    """The pad token that an adapter was trained with: by TRL its tokenizer's, whatever the base's config says."""
    holder = own_tokenizer if source.is_by_trl and own_tokenizer is not None else base_config.get_text_config()
    pad_id: int | None = holder.pad_token_id
    return pad_id


def complete(source: Source, state: AdapterState, backbone: Backbone) -> AdapterState:
    """An adapter with its whole head, in fp32: what it saved, the rest as the base has it, updates of it merged.

    PEFT saves `classifier` or `score` alone unless told otherwise: BERT's pooler is then the base's, and may have a
    LoRA update, which is added to its weights here, since the head is no part of the folded backbone.

    Raises:
        HeadMissing: a part that is in neither: PEFT drew it at random.
        Unsupported: no LoRA weights, a head of several labels, or a trained tensor that is no part of the head.
    """
    head = {}
    lora: dict[str, LoraWeights] = dict(state.lora)
    for name, parameter in backbone.head.named_parameters():
        public = backbone.head.public_name(name)
        if public not in state.head and public in backbone.new_parameters:
            raise HeadMissing(
                f"{source.given}: holds no {public}, and its base neither: the head was not saved (PEFT's "
                "modules_to_save), its scores would be random"
            )
        head[public] = state.head.get(public, parameter).detach().float().clone()
        if head[public].shape != parameter.shape:
            raise Unsupported(
                f"{source.given}: {public} has the shape {tuple(head[public].shape)}, a reward head on this base "
                f"{tuple(parameter.shape)}: it has several labels, or is for another base"
            )
        module = public.removesuffix(".weight")
        if module in lora:
            update = lora.pop(module)
            head[public] += update.scaling * (update.b.float() @ update.a.float())
    unknown = sorted(set(state.head) - set(head))
    if unknown:
        raise Unsupported(f"{source.given}: {unknown[0]} was trained, but is no part of the head; it would be ignored")
    if not lora:
        raise Unsupported(f"{source.given}: holds no LoRA weights of the backbone")
    return AdapterState(lora, head)


def write_member(folder: Path, source: Source, state: AdapterState, base: str, head_modules: list[str]) -> None:
    """Write a completed adapter in PEFT's format: its own ranks and scalings, its updates by their full names."""
    config = PeftConfig.from_pretrained(str(source.folder))
    config.base_model_name_or_path = base
    config.task_type = "SEQ_CLS"
    config.inference_mode = True
    config.modules_to_save = head_modules
    config.target_modules = sorted(state.lora)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.save_pretrained(str(folder))
    tensors = {_PREFIX + name: tensor for name, tensor in state.head.items()}
    for name, weights in state.lora.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = weights.a
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = weights.b
    contiguous: dict[str, torch.Tensor] = {key: value.contiguous() for key, value in tensors.items()}
    save_file(contiguous, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
