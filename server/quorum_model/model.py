"""The ensemble in memory: one backbone, K folded members, their heads; rows of token ids in, raw scores out.

    rows (R x N token-id lists)  --pack-->  body, folded  --pool-->  (K, N, d)  --heads-->  raw scores (K, N)

The same module serves and trains. Where a backbone cannot be packed exactly (attention code of its own), it runs one
member at a time over unpadded batches of equal length: slower, exact. Knows nothing of files, text or calibration.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quorum_model.adapters import LoraWeights, stack_adapters
from quorum_model.backbone import Backbone
from quorum_model.errors import Unsupported
from quorum_model.folded import (
    ALL_MEMBERS,
    FoldedLinear,
    expand_before,
    features_of,
    fold_into,
    is_linear,
    set_members,
    set_only_member,
)
from quorum_model.heads import StackedHeads
from quorum_model.layers import layer_modules, num_layers
from quorum_model.narrowing import LastLayer
from quorum_model.packing import PACKING_KEYWORD, PackedBatch, Pooling, Rows, pack, packing_of, pool
from quorum_model.packing_trial import why_not_packed
from quorum_model.prefixes import PrefixForest

logger = logging.getLogger(__name__)

Attention = Literal["packed", "unpadded"]


class EnsembleModel(nn.Module):
    """K members over one backbone.

    Args:
        backbone: as loaded; its model is modified in place.
        adapters: a mapping of module name to LoRA weights a member; or a single one that all members share (phase 1
            by a shared adapter); or None where members are heads alone.
        heads: a head state a member, by names of the sequence-classification model.
        pooling: which vector of a sequence the head sees.
        adapter_dtype: of the adapters; the backbone's own if left out. float32 over a bf16 backbone is for training.

    Raises:
        Unsupported: an adapter on a module that is not a linear layer of this backbone, or a pooling without sense.
        HeadMissing: a member's head is incomplete.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapters: Sequence[Mapping[str, LoraWeights]] | None,
        heads: Sequence[Mapping[str, Tensor]],
        pooling: Pooling,
        *,
        adapter_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._last_layer: LastLayer | None = None
        self.backbone = backbone
        self.model: nn.Module = backbone.model
        self.heads = StackedHeads(backbone.head, heads)
        if pooling == "first" and backbone.is_causal:
            raise Unsupported("the first token of a causal backbone has seen nothing: pool by last or mean")
        self.pooling: Pooling = pooling
        self.num_members = len(heads)
        self.num_adapters = len(adapters) if adapters else 1
        if self.num_adapters not in (1, self.num_members):
            raise ValueError(f"{self.num_adapters} adapters for {self.num_members} members")
        parameter = next(backbone.body.parameters())
        self.heads.to(parameter.device, torch.float64 if parameter.dtype == torch.float64 else torch.float32)
        self.use_plain_attention()
        self.folded = _fold(backbone, adapters, adapter_dtype) if adapters is not None else {}
        if self.folded:
            set_only_member(self.folded.values(), 0)
            first = self._first_folded()
            set_only_member(self.folded.values(), None)
            expand_before(self.model, first)
        self.attention: Attention = self._choose_attention()
        self._last_layer = self._narrow_last_layer()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        parameter: Tensor = next(self.backbone.body.parameters())
        return parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """What the body computes in."""
        dtype: torch.dtype = self.backbone.body.dtype
        return dtype

    @property
    def vocab_size(self) -> int:
        """Token ids that it knows."""
        return self.backbone.vocab_size

    @property
    def shares_prefixes(self) -> bool:
        """Whether sequences that begin alike may be given as a prefix forest: causal, and packed."""
        return self.backbone.is_causal and self.attention == "packed"

    @property
    def stores_prefixes(self) -> bool:
        """Whether a forest may begin with stored blocks: their hidden states are gone, so nothing pools them."""
        return self.shares_prefixes and self.pooling == "last"

    def narrows(self, layer: nn.Module) -> bool:
        """Whether this layer computes pooled tokens alone, by hooks on its modules."""
        return self._last_layer is not None and self._last_layer.layer is layer

    def forward(self, rows: Rows, members: slice = ALL_MEMBERS) -> Tensor:
        """Raw scores (K, N), before calibration, in the heads' dtype.

        Args:
            rows: one row of N sequences that every member scores, or K rows, a member's own each. A prefix forest
                where `shares_prefixes` holds.
            members: those that run, and K their number: some at a time where memory is short.
        """
        which = range(*members.indices(self.num_members))
        if len(rows) not in (1, len(which)):
            raise ValueError(f"expected 1 or {len(which)} rows, got {len(rows)}")
        if not self.shares_prefixes and any(isinstance(row, PrefixForest) for row in rows):
            raise ValueError("only a packed causal backbone can share prefixes")
        if self.num_adapters == 1:  # one body for all members: nothing to choose there
            return self._scores(rows, range(1), members)
        # Left as it is until the next forward: recomputed activations, in the backward pass, are of these members too.
        set_members(self.folded.values(), members)
        return self._scores(rows, which, members)

    def _scores(self, rows: Rows, adapters: range, members: slice) -> Tensor:
        packed = self.attention == "packed"
        pooled = self.pooled_packed(rows, len(adapters)) if packed else self.pooled_unpadded(rows, adapters)
        with torch.autocast(self.device.type, enabled=False):  # heads stay exact where the body computes in bf16
            scores: Tensor = self.heads(pooled, members)
        return scores

    def adapter_of(self, index: int) -> dict[str, LoraWeights]:
        """The updates of one member (or, at 0, the shared ones), by module name, on the CPU."""
        adapter = {}
        for name, layer in self.folded.items():
            a = layer.a[index].detach().T.contiguous().cpu().clone()
            b = layer.b[index].detach().T.contiguous().cpu().clone()
            adapter[name] = LoraWeights(a, b, float(layer.scaling[index]))
        return adapter

    def _body(self, **inputs: Any) -> Tensor:
        hidden: Tensor = self.backbone.body(**inputs).last_hidden_state
        return hidden

    def run_packed(self, batch: PackedBatch) -> Tensor:
        """Hidden states (K, T, d) of a packed batch."""
        return self._body(
            input_ids=batch.input_ids, position_ids=batch.position_ids, **{PACKING_KEYWORD: batch.packing}
        )

    def pooled_packed(self, rows: Rows, num_adapters: int) -> Tensor:
        """Pooled vectors (K, N, d), or (1, N, d) where all members share everything; raises where packing failed."""
        batch = pack(rows, position_offset=self.backbone.position_offset, device=self.device)
        if self._last_layer is not None and len(rows) == 1 and not torch.is_grad_enabled():
            with self._last_layer.narrowing(batch):
                hidden = self.run_packed(batch)
        else:
            hidden = self.run_packed(batch)
        layers = num_layers(self.backbone)
        if batch.packing.num_attention_calls != layers:
            raise RuntimeError(
                f"packed attention ran {batch.packing.num_attention_calls} times in {layers} layers: sequences may "
                "have leaked into each other"
            )
        expected = max(num_adapters, len(rows))
        if hidden.shape[0] != expected:
            raise RuntimeError(f"hidden states of {hidden.shape[0]} rows where {expected} were expected")
        return pool(hidden, batch.packing, self.pooling)

    def pooled_unpadded(self, rows: Rows, adapters: range) -> Tensor:
        """One member at a time, sequences of equal length together, no padding and so no mask."""
        pooled = []
        for index in range(max(len(adapters), len(rows))):
            set_only_member(self.folded.values(), adapters[index] if len(adapters) > 1 else adapters[0])
            pooled.append(self._pooled_one(rows[index] if len(rows) > 1 else rows[0]))
        set_only_member(self.folded.values(), None)
        return torch.stack(pooled)

    def _pooled_one(self, sequences: Any) -> Tensor:
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, sequence in enumerate(sequences):
            by_length[len(sequence)].append(index)
        order, vectors = [], []
        for length, indices in by_length.items():
            ids = torch.tensor([list(sequences[index]) for index in indices], device=self.device)
            hidden = self._body(input_ids=ids)
            vectors.append(pool(hidden, packing_of([[length]] * len(indices)), self.pooling)[:, 0])
            order += indices
        inverse = torch.empty(len(order), dtype=torch.int64)
        inverse[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(vectors)[inverse.to(self.device)]

    def probe_row(self) -> list[list[int]]:
        """Three short sequences of ordinary token ids."""
        vocab = self.backbone.vocab_size
        return [[(7 * step + 11 * length) % vocab for step in range(length)] for length in (5, 9, 3)]

    def _first_folded(self) -> str:
        """The folded layer that runs first (definition order can differ from execution order)."""
        ran: list[str] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _m, _a, name=name: ran.append(name))
            for name, layer in self.folded.items()
        ]
        try:
            with torch.no_grad():
                self._body(input_ids=torch.tensor([self.probe_row()[0]], device=self.device))
        except AttributeError as error:  # a model that reads a layer's weight instead of calling the layer
            raise Unsupported(f"this backbone does not call one of its adapted layers: {error}") from error
        for hook in hooks:
            hook.remove()
        if not ran:
            raise Unsupported("no adapted layer is part of the forward pass")
        return ran[0]

    def use_plain_attention(self) -> None:
        """Eager is the oracle that packing is tried against: sdpa swallows Gemma 2's softcap."""
        if type(self.backbone.body)._can_set_attn_implementation():
            self.backbone.model.set_attn_implementation("eager")

    def _choose_attention(self) -> Attention:
        """Packed where that is exact, tried and not believed: some backbones ignore the attention they are given."""
        reason = why_not_packed(self)
        if reason is None:
            return "packed"
        self.use_plain_attention()
        logger.warning("this backbone runs unpadded, one member at a time (slower, exact): %s", reason)
        return "unpadded"

    def _narrow_last_layer(self) -> LastLayer | None:
        """Where pooling takes one token a sequence, the last layer need not compute the others."""
        layers = layer_modules(self.backbone)
        if self.attention != "packed" or self.pooling == "mean" or layers is None:
            return None
        last = LastLayer(layers[-1], self.pooling)
        batch = pack([self.probe_row()], position_offset=self.backbone.position_offset, device=self.device)
        with torch.no_grad():
            last.find_modules(batch, lambda: self.run_packed(batch))
        return last


def _fold(
    backbone: Backbone, adapters: Sequence[Mapping[str, LoraWeights]], dtype: torch.dtype | None
) -> dict[str, FoldedLinear]:
    modules = dict(backbone.model.named_modules())
    layers = {}
    for name in sorted({name for adapter in adapters for name in adapter}):
        if name not in modules or not is_linear(modules[name]):
            raise Unsupported(f"the adapter updates {name}, which is no linear layer of this backbone")
        if not name.startswith(f"{backbone.body_prefix}."):
            raise Unsupported(f"the adapter updates {name}, which is part of the head")
        base = modules[name]
        a, b, scaling = stack_adapters(adapters, name)
        if (a.shape[1], b.shape[2]) != features_of(base):
            raise Unsupported(f"the adapter of {name} is for another shape than this backbone's")
        weight = base.weight
        assert isinstance(weight, Tensor)
        exact = torch.float64 if weight.dtype == torch.float64 else torch.float32
        a, b = (factor.to(weight.device, dtype or weight.dtype) for factor in (a, b))
        layers[name] = FoldedLinear(base, a, b, scaling.to(weight.device, exact))
    fold_into(backbone.model, layers)
    return layers
