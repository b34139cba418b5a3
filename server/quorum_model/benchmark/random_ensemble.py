"""Ensembles that nobody trained: drawn members on a backbone, written as bundles and as PEFT adapters.

    backbone, kind, K, rank, layers  --draw_ensemble-->  RandomEnsemble  --write_*-->  a bundle, a model, adapters

Every update is non-zero and a tenth of the weight that it changes, so that members differ and no path can leave one
out unseen. Kind `singles` holds the same members, each merged into a body of its own: its scores are those of `lora`.
Knows no time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from quorum_model.adapters import AdapterState, LoraWeights, merge_adapter, write_adapter
from quorum_model.backbone import Backbone, is_causal, load_backbone
from quorum_model.benchmark.quiet import quiet_transformers
from quorum_model.bundle.golden import GoldenItem, write_golden
from quorum_model.bundle.manifest import BackboneRef, Kind, Manifest, MemberEntry, PromptFormat, fingerprint_of
from quorum_model.bundle.parts import HEADS_NAME, body_folder, save_body, save_heads
from quorum_model.bundle.read import Bundle
from quorum_model.bundle.write import write_bundle
from quorum_model.errors import Unsupported
from quorum_model.folded import features_of
from quorum_model.layers import TOP_FRACTIONS, linears_by_layer, num_layers, top_layers
from quorum_model.model import EnsembleModel
from quorum_model.packing import Pooling
from quorum_model.prompts import PLAIN_TEMPLATE, default_prompt_format
from quorum_model.sources import BUNDLE_SCHEME, hash_tokenizer, hash_weights, load_tokenizer

BenchKind = Literal["lora", "linear", "singles"]
Layers = Literal["all", "top-half", "top-third", "top-sixth"]

_SCALING = 2.0
_UPDATE_SHARE = 0.1  # Frobenius norm of an update over that of its weight
_GOLDEN_LENGTHS = (3, 7, 12, 20)
_BODY = "backbone"
_UNKNOWN = "<unk>"
_KEPT_BY_PEFT = ("classifier", "score")  # by its task type SEQ_CLS


@dataclass(frozen=True, slots=True)
class RandomEnsemble:
    """K drawn members on the backbone in a folder.

    states: a member each; without updates for kind `linear`. golden: a few inputs with every member's fp32 score.
    first_adapted: index of the lowest layer that members do not share. head_modules: those that hold the head's
    parameters; PEFT runs mixed batches through linear heads, and refuses modules around them.
    """

    backbone: Path
    kind: BenchKind
    states: list[AdapterState]
    golden: list[GoldenItem]
    pooling: Pooling
    max_length: int
    first_adapted: int
    head_modules: list[str]

    def write(self, target: Path) -> Bundle:
        """The ensemble's bundle."""
        if self.kind == "singles":
            return self._write_merged(target, "singles", [body_folder(_name(k)) for k in range(len(self.states))])

        def write_files(root: Path) -> None:
            write_golden(root, self.golden)
            if self.kind == "lora":
                self.write_adapters(root / "members")
            else:
                self._save_heads(root, self.states)

        return write_bundle(target, self._manifest(self.kind, str(self.backbone)), write_files)

    def write_one(self, target: Path) -> Bundle:
        """The bundle of the first member alone, merged: what one would serve who has one model."""
        return self._write_merged(target, "single", [_BODY])

    def write_adapters(self, folder: Path) -> list[Path]:
        """Every member in PEFT's format, a folder each."""
        folders = [folder / _name(k) for k in range(len(self.states))]
        for state, path in zip(self.states, folders, strict=True):
            rank = next(iter(state.lora.values())).a.shape[0]
            write_adapter(
                path, state, base_source=str(self.backbone), alpha=_SCALING * rank, head_modules=self.head_modules
            )
        return folders

    def write_checkpoint(self, folder: Path) -> Path:
        """The first member alone as Transformers saves it, its update merged; with a tokenizer that knows no word."""
        model = load_whole_model(self.backbone, torch.float32)
        merge_adapter(model, self.states[0])
        model.load_state_dict(self.states[0].head, strict=False)
        with quiet_transformers():
            model.save_pretrained(folder)
        # Token ids are given, but vLLM opens no model without a tokenizer, and a random backbone has none.
        wordless = Tokenizer(WordLevel({_UNKNOWN: 0}, unk_token=_UNKNOWN))
        PreTrainedTokenizerFast(tokenizer_object=wordless, unk_token=_UNKNOWN).save_pretrained(folder)
        return folder

    def _write_merged(self, target: Path, kind: Kind, folders: list[str]) -> Bundle:
        """One body a folder, with the update of the member of that place merged."""
        states = self.states[: len(folders)]
        golden = [GoldenItem(token_ids=g.token_ids, scores=g.scores[: len(folders)]) for g in self.golden]
        # The manifest names the first body's hash, so that body is made before the bundle is.
        bodies = target.with_name(f"{target.name}-bodies")
        for state, folder in zip(states, folders, strict=True):
            merged = load_backbone(self.backbone)
            merge_adapter(merged.model, state)
            with quiet_transformers():
                save_body(bodies / folder, merged)

        def write_files(root: Path) -> None:
            for folder in folders:
                (root / folder).parent.mkdir(parents=True, exist_ok=True)
                (bodies / folder).rename(root / folder)
            self._save_heads(root, states)
            write_golden(root, golden)

        manifest = self._manifest(kind, f"{BUNDLE_SCHEME}{folders[0]}", hash_weights(bodies / folders[0]), folders)
        return write_bundle(target, manifest, write_files)

    def _text_format(self) -> tuple[str, tuple[PromptFormat, list[int], list[int]]]:
        """The tokenizer's hash and a new ensemble's format; a random backbone has none, and scores ids alone."""
        if not (self.backbone / "tokenizer_config.json").is_file():
            fingerprint = fingerprint_of(PLAIN_TEMPLATE, [], [])
            plain = PromptFormat(template=PLAIN_TEMPLATE, origin="plain", fingerprint=fingerprint)
            return "0" * 64, (plain, [], [])
        causal = is_causal(self.backbone)
        return hash_tokenizer(self.backbone), default_prompt_format(load_tokenizer(self.backbone), is_causal=causal)

    def _save_heads(self, root: Path, states: Sequence[AdapterState]) -> None:
        save_heads(root / HEADS_NAME, {_name(k): state.head for k, state in enumerate(states)})

    def _manifest(
        self, kind: Kind, source: str, weights_sha256: str | None = None, bodies: Sequence[str] = ()
    ) -> Manifest:
        count = len(bodies) or len(self.states)
        tokenizer_sha256, (prompt_format, bos_ids, eos_ids) = self._text_format()
        return Manifest(
            name="random",
            kind=kind,
            backbone=BackboneRef(
                source=source,
                weights_sha256=weights_sha256 or hash_weights(self.backbone),
                tokenizer_sha256=tokenizer_sha256,
            ),
            pooling=self.pooling,
            max_length=self.max_length,
            bos_ids=bos_ids,
            eos_ids=eos_ids,
            prompt_format=prompt_format,
            members=[
                MemberEntry(
                    name=_name(k),
                    adapter=f"members/{_name(k)}" if kind == "lora" else None,
                    head=f"members/{_name(k)}/adapter_model.safetensors" if kind == "lora" else HEADS_NAME,
                    backbone=bodies[k] if kind == "singles" else None,
                    seed=k,
                )
                for k in range(count)
            ],
        )


def load_whole_model(folder: Path, dtype: torch.dtype) -> Any:
    """The sequence-classification model of a backbone as Transformers has it, attention by SDPA, one label.

    Untouched by what the engine does to a `Backbone`; its head is drawn anew where the folder holds none.
    """
    with quiet_transformers():  # the head that the folder lacks comes from the member
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
    model.config.use_cache = False
    return model.eval().requires_grad_(False)


def _name(member: int) -> str:
    return f"m{member:02d}"


def draw_ensemble(
    folder: Path, *, kind: BenchKind, members: int, rank: int, layers: Layers, max_length: int
) -> RandomEnsemble:
    """Draw K members on the backbone in `folder`, pooled as its own sequence-classification class pools.

    Args:
        folder: of the backbone; with or without a head.
        kind: `linear` has no updates.
        members: K; fewer members are the first of more.
        rank: of the updates.
        layers: every linear layer of these has an update.
        max_length: longest sequence that will be scored.

    Raises:
        Unsupported: no positions for so long a sequence, or no linear layers to adapt.
    """
    backbone = load_backbone(folder)
    if backbone.max_positions is not None and max_length > backbone.max_positions:
        raise Unsupported(f"this backbone has positions for {backbone.max_positions} tokens, not {max_length}")
    count = num_layers(backbone)
    chosen = top_layers(count, TOP_FRACTIONS[layers]) if kind != "linear" else range(count, count)
    names = [name for layer, linears in linears_by_layer(backbone).items() if layer in chosen for name in linears]
    if kind != "linear" and not names:
        raise Unsupported("this backbone has no linear layers of its own there (does it share its layers?)")
    states = [_draw_member(backbone, names, rank, seed) for seed in range(members)]
    pooling: Pooling = "last" if hasattr(backbone.model, "score") else "first"
    head_modules = _head_modules(states[0].head)
    return RandomEnsemble(
        folder, kind, states, _golden(backbone, states, pooling), pooling, max_length, chosen.start, head_modules
    )


def _head_modules(head: Mapping[str, Tensor]) -> list[str]:
    """The innermost modules with a head's parameters; whole are those that PEFT itself keeps beside an adapter."""
    parents = {name.rpartition(".")[0] for name in head}
    return sorted({name.partition(".")[0] if name.startswith(_KEPT_BY_PEFT) else name for name in parents})


def _draw_member(backbone: Backbone, names: Sequence[str], rank: int, seed: int) -> AdapterState:
    draw = torch.Generator().manual_seed(seed)
    modules = dict(backbone.model.named_modules())
    lora = {}
    for name in names:
        d_in, d_out = features_of(modules[name])
        a, b = torch.randn(rank, d_in, generator=draw), torch.randn(d_out, rank, generator=draw)
        weight = modules[name].weight
        assert isinstance(weight, Tensor)
        size = ((b.T @ b) * (a @ a.T)).sum().sqrt()  # of b @ a, by two small products
        share = _UPDATE_SHARE * weight.norm() / (_SCALING * size)
        lora[name] = LoraWeights(a * share.sqrt(), b * share.sqrt(), _SCALING)
    head = {}
    for name, parameter in backbone.head.named_parameters():
        tensor = parameter.detach().clone()
        if tensor.dim() > 1:
            tensor.normal_(0.0, tensor.shape[1] ** -0.5, generator=draw)
        head[backbone.head.public_name(name)] = tensor
    return AdapterState(lora, head)


def _golden(backbone: Backbone, states: Sequence[AdapterState], pooling: Pooling) -> list[GoldenItem]:
    """Inputs for the self-test, scored in fp32 by the folded members: merged ones must give the same."""
    adapters = [state.lora for state in states] if states[0].lora else None
    model = EnsembleModel(backbone, adapters, [state.head for state in states], pooling).eval()
    sequences = [
        [(7 * place + 11 * length) % backbone.vocab_size for place in range(length)] for length in _GOLDEN_LENGTHS
    ]
    with torch.inference_mode():
        raw = model([sequences]).double()
    return [GoldenItem(token_ids=ids, scores=raw[:, index].tolist()) for index, ids in enumerate(sequences)]
