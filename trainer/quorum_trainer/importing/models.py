"""Whole reward models: one becomes a bundle of kind `single`, several one of kind `singles`.

    [Source of a sequence-classification model]  --plan_models-->  Plan

Models are copied file by file, so that their dtype and their hashes stay what they were; heads are kept once more in
fp32, which holds bf16 and fp16 exactly. Knows nothing of scores.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from quorum_model.backbone import default_pooling, load_backbone
from quorum_model.bundle.parts import HEADS_NAME, body_folder, save_heads
from quorum_model.errors import HeadMissing, Unsupported
from quorum_model.packing import Pooling
from quorum_model.sources import BUNDLE_SCHEME, load_tokenizer, reference_to
from quorum_trainer.importing.plan import (
    MemberPlan,
    Plan,
    common_format,
    convention_of,
    ignored_id,
    member_names,
    usual_length,
)
from quorum_trainer.importing.sources import Source, check_class, check_reward_model
from quorum_trainer.importing.transformers_scores import load_model

_WEIGHTS = ("config.json", "model*.safetensors", "model.safetensors.index.json", "LICENSE", "NOTICE")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.*",
    "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Model:
    """What is kept of a model after a look at it. shape: what members of one ensemble have in common."""

    config: Any
    head: dict[str, Tensor]
    pooling: Pooling
    is_own_pooling: bool
    skipped_id: int | None
    max_positions: int | None
    shape: dict[str, Any]


def plan_models(sources: Sequence[Source], *, pooling: Pooling | None, template: str | None) -> Plan:
    """Look at every model, and say what bundle they make.

    Args:
        sources: one or several models, in the order of the members.
        pooling: other than the architecture's own.
        template: other than the tokenizer's own.

    Raises:
        Unsupported: one is no reward model, or cannot be scored exactly, or differs from the first.
        HeadMissing: a checkpoint without a trained head.
        BackboneNotFound: a model without a fast tokenizer.
    """
    models = [_look_at(source, pooling) for source in sources]
    for source, model in zip(sources, models, strict=True):
        _check_alike(source, model, sources[0], models[0])
    tokenizers = [load_tokenizer(source.folder) for source in sources]
    conventions = [
        convention_of(source, tokenizer, template, model.skipped_id)
        for source, tokenizer, model in zip(sources, tokenizers, models, strict=True)
    ]
    names = member_names(len(sources))
    folders = ["backbone"] if len(sources) == 1 else [body_folder(name) for name in names]

    def write_parts(root: Path) -> None:
        for index, (source, folder) in enumerate(zip(sources, folders, strict=True)):
            copy_model(source.folder, root / folder, with_tokenizer=index == 0)
        save_heads(root / HEADS_NAME, {name: model.head for name, model in zip(names, models, strict=True)})

    members = [
        MemberPlan(
            name=name,
            load=partial(load_model, source.folder),
            convention=convention,
            tokenizer=tokenizer,
            head=HEADS_NAME,
            backbone=folder if len(sources) > 1 else None,
        )
        for name, source, convention, tokenizer, folder in zip(
            names, sources, conventions, tokenizers, folders, strict=True
        )
    ]
    # Before an encoder takes over the tokenizer's own limit.
    usual = usual_length(models[0].config, tokenizers[0], models[0].max_positions)
    return Plan(
        kind="single" if len(sources) == 1 else "singles",
        backbone=reference_to(f"{BUNDLE_SCHEME}{folders[0]}", sources[0].folder),
        members=members,
        token_format=common_format(sources, conventions, tokenizers, tokenizers[0]),
        tokenizer=tokenizers[0],
        pooling=models[0].pooling,
        is_own_pooling=models[0].is_own_pooling,
        max_positions=models[0].max_positions,
        usual_length=usual,
        write_parts=write_parts,
    )


def _look_at(source: Source, pooling: Pooling | None) -> _Model:
    config = check_reward_model(source)
    backbone = load_backbone(source.folder)
    check_class(source, config, backbone.model)
    head = {}
    for name, parameter in backbone.head.named_parameters():
        public = backbone.head.public_name(name)
        if public in backbone.new_parameters:
            raise HeadMissing(
                f"{source.given}: the checkpoint holds no {public}: its head was never trained, its scores are random"
            )
        head[public] = parameter.detach().clone()
    own_pooling = default_pooling(backbone.model)
    chosen = pooling or own_pooling
    text_config = config.get_text_config()
    return _Model(
        config=config,
        head=head,
        pooling=chosen,
        is_own_pooling=chosen == own_pooling,
        skipped_id=ignored_id(text_config.pad_token_id, chosen, backbone),
        max_positions=backbone.max_positions,
        shape={
            "architecture": type(backbone.model).__name__,
            "hidden size": text_config.hidden_size,
            "number of layers": text_config.num_hidden_layers,
            "pooling": chosen,
            "number of positions": backbone.max_positions,
        },
    )


def _check_alike(source: Source, model: _Model, first: Source, first_model: _Model) -> None:
    for what, value in model.shape.items():
        if value != first_model.shape[what]:
            raise Unsupported(
                f"{source.given}: its {what} is {value}, that of {first.given} is {first_model.shape[what]}: the "
                "members of one ensemble have one architecture"
            )


def copy_model(source: Path, target: Path, *, with_tokenizer: bool) -> None:
    """Copy a model's config and weights as they are, and its tokenizer; nothing else of the folder."""
    target.mkdir(parents=True)
    for pattern in (*_WEIGHTS, *(_TOKENIZER if with_tokenizer else ())):
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)  # the content, also of a hub cache's links
