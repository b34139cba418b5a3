"""Who competes: PEFT padded, PEFT packed, and the folded ensemble; each trains K members for the same steps.

    Task  --peft_one_by_one, folded-->  work to be timed, which returns the members' last losses

All have the same adapters, pairs, batches, optimiser and clip, so that their losses must agree.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from quorum_model.adapters import LoraWeights
from quorum_model.attention import ATTENTION_NAME
from quorum_model.backbone import Backbone, load_backbone
from quorum_model.casting import cast_weights
from quorum_model.model import EnsembleModel
from quorum_model.packing import PACKING_KEYWORD, pack, pool
from quorum_trainer.config import Layers, LoraOptions, LossOptions, Optimisation, PhaseTwo
from quorum_trainer.data import EncodedPair
from quorum_trainer.training.batches import Batch, PairOrders
from quorum_trainer.training.draws import adapted_modules, draw_adapter, draw_head
from quorum_trainer.training.loop import make_optimizer
from quorum_trainer.training.losses import centring, preference
from quorum_trainer.training.step import StepSettings, train_step, trainables_of

_OPTIONS = Optimisation(lr=3e-4, clip=1.0)
_LOSS = LossOptions()


@dataclass(frozen=True, slots=True)
class Task:
    """What everyone trains: K members of rank r on some layers, for so many steps of so many pairs.

    shared_order: all members see the same batches. dtype: of the frozen backbone; what is trained is float32.
    """

    folder: Path
    pairs: Sequence[EncodedPair]
    members: int
    rank: int
    layers: Layers
    steps: int
    batch_pairs: int
    shared_order: bool
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def lora(self) -> LoraOptions:
        """The adapters' options."""
        return LoraOptions(rank=self.rank, alpha=2 * self.rank, layers=self.layers)

    def orders(self, members: Sequence[int]) -> PairOrders:
        """The batches of some members."""
        seeds = [0] if self.shared_order else list(members)
        return PairOrders(self.pairs, seeds, shared=self.shared_order, batch_pairs=self.batch_pairs)

    def start(self, backbone: Backbone, member: int) -> tuple[dict[str, LoraWeights], dict[str, Tensor]]:
        """The member's adapter and head."""
        draw = torch.Generator().manual_seed(member)
        return draw_adapter(backbone, self.lora(), draw), draw_head(backbone, draw, redraw_projection=True)


@lru_cache(maxsize=1)
def _original(folder: Path, dtype: torch.dtype, device: torch.device) -> Backbone:
    backbone = load_backbone(folder)
    cast_weights(backbone.model, dtype, device)
    return backbone


def _load(task: Task) -> Backbone:
    """A backbone of one's own; a large one is read from disk once for all."""
    return copy.deepcopy(_original(task.folder, task.dtype, task.device))


def folded(task: Task) -> Callable[[], list[float]]:
    """All members, as many in one pass as `quorum train` takes."""
    backbone = _load(task)
    starts = [task.start(backbone, member) for member in range(task.members)]
    adapters, heads = [adapter for adapter, _ in starts], [head for _, head in starts]
    model = EnsembleModel(backbone, adapters, heads, "mean", adapter_dtype=torch.float32)
    trainables = trainables_of(model, backbone=False)
    optimizer = make_optimizer(trainables, _OPTIONS)
    orders = task.orders(range(task.members))
    phase = PhaseTwo(lr=_OPTIONS.lr, order="shared" if task.shared_order else "own")
    at_once = phase.members_in_a_pass(task.members, model.device.type)
    settings = StepSettings(clip=_OPTIONS.clip, loss=_LOSS, members_at_once=at_once)

    def work() -> list[float]:
        losses: list[float] = []
        for _ in range(task.steps):
            losses = train_step(model, trainables, orders.next(), optimizer, settings).losses
        return losses

    return work


def peft_one_by_one(task: Task, *, packed: bool) -> Callable[[], list[float]]:
    """One PEFT model after another; padded as Transformers does it, or packed with the attention of ours."""
    runs = [_peft_run(task, member, packed=packed) for member in range(task.members)]
    return lambda: [run() for run in runs]


def _peft_run(task: Task, member: int, *, packed: bool) -> Callable[[], float]:
    backbone = _load(task)
    adapter, head = task.start(backbone, member)
    model, head_module = _peft_model(task, backbone, adapter, head)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trained += list(head_module.parameters())
    optimizer = torch.optim.AdamW(trained, lr=_OPTIONS.lr, weight_decay=_OPTIONS.weight_decay)
    orders = task.orders([member])
    body = model.base_model.model
    if packed:
        body.set_attn_implementation(ATTENTION_NAME)

    def run() -> float:
        loss = torch.zeros(())
        for _ in range(task.steps):
            batch = orders.next()
            optimizer.zero_grad(set_to_none=True)
            scores = head_module(_pooled(body, backbone, batch, packed=packed).float())[None]
            loss, total = _loss(scores, batch)
            torch.autograd.backward(total)
            nn.utils.clip_grad_norm_(trained, _OPTIONS.clip)
            optimizer.step()
        return float(loss.detach())

    return run


def _peft_model(
    task: Task, backbone: Backbone, adapter: dict[str, LoraWeights], head: dict[str, Tensor]
) -> tuple[Any, nn.Module]:
    """PEFT around the body, with the member's first weights; the head beside it."""
    names = [name.removeprefix(f"{backbone.body_prefix}.") for name in adapted_modules(backbone, task.layers)]
    config = LoraConfig(r=task.rank, lora_alpha=2 * task.rank, target_modules=names, lora_dropout=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(backbone.body, config)
    for name in names:
        layer = model.base_model.model.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(adapter[f"{backbone.body_prefix}.{name}"].a)
    module = copy.deepcopy(backbone.head)
    module.load_state_dict({key: head[backbone.head.public_name(key)] for key, _ in module.named_parameters()})
    return model.to(task.device), module.float().to(task.device).requires_grad_(True)


def _pooled(body: Any, backbone: Backbone, batch: Batch, *, packed: bool) -> Tensor:
    if packed:
        row = pack(batch.rows, position_offset=backbone.position_offset, device=body.device)
        inputs = {"input_ids": row.input_ids, "position_ids": row.position_ids, PACKING_KEYWORD: row.packing}
        return pool(body(**inputs).last_hidden_state, row.packing, "mean")[0]
    sequences = batch.rows[0]
    longest = max(map(len, sequences))
    ids = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in sequences])
    mask = torch.tensor([[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences])
    ids, mask = ids.to(body.device), mask.to(body.device)
    hidden = body(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask[:, :, None].to(hidden)
    pooled: Tensor = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    return pooled


def _loss(scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(preference, preference and centring), means over the pairs."""
    half = scores.shape[1] // 2
    chosen, rejected = scores[:, :half], scores[:, half:]
    terms = batch.terms.to(scores)
    cost = preference(chosen, rejected, terms)[0] / half
    return cost, cost + _LOSS.centring * centring(chosen, rejected, terms)[0] / half
