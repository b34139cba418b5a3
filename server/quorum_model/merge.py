"""The members of an ensemble as one model: their average in weight space, in the manner of WARM (arXiv 2401.12187).

    K x (adapter, head, calibration)  --merge_members-->  one (adapter of rank sum r_k, head), what is left to subtract

What is exact: the updates, as the merged weights W + mean_k s_k B_k A_k (s_k: LoRA's scaling), by concatenation, with
nothing lost to a lower rank; and the projection, in that over one and the same vector the merged one gives the mean of
the members' calibrated scores. What is not: members see different vectors, each through its own updates, and the score
of averaged weights is then only near the average of the scores (WARM rests on linear mode connectivity for that). So,
too, for a head's layers before the projection, which are averaged as they are.

Pure functions of tensors. Knows no files, no backbones and no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quorum_model.adapters import AdapterState, LoraWeights
from quorum_model.bundle.manifest import MemberCalibration
from quorum_model.errors import BundleCorrupt, HeadMissing
from quorum_model.heads import Head


@dataclass(frozen=True, slots=True)
class MergedMember:
    """The only member of the merged ensemble.

    state: its adapter (scaling 1 everywhere) and head. offset: the mean of its score by the members' own calibrations,
    where the head has no bias to hold it; else 0.
    """

    state: AdapterState
    offset: float


def merge_members(
    members: Sequence[AdapterState], calibration: Sequence[MemberCalibration], projection: str
) -> MergedMember:
    """Average K members.

    Args:
        members: adapters, each with its head; modules, ranks and scalings may differ.
        calibration: a member's each.
        projection: see `projection_of`.

    Raises:
        BundleCorrupt: updates of one module that differ in their shapes.
        HeadMissing: heads that differ in their parameters or shapes.
    """
    head, offset = merge_heads([member.head for member in members], calibration, projection)
    return MergedMember(AdapterState(merge_updates([member.lora for member in members]), head), offset)


def merge_updates(members: Sequence[Mapping[str, LoraWeights]]) -> dict[str, LoraWeights]:
    """The mean of K low-rank updates, by module, as one update of scaling 1.

    A = [A_1; ...; A_K] and B = [B_1 s_1 / K, ..., B_K s_K / K], so that B A = mean_k s_k B_k A_k. A member without an
    update of a module counts as one of zero.
    """
    merged = {}
    for name in sorted({name for member in members for name in member}):
        present = [member[name] for member in members if name in member]
        if len({(update.a.shape[1], update.b.shape[0]) for update in present}) != 1:
            raise BundleCorrupt(f"the members' updates of {name} have different shapes")
        dtype = _exact_dtype([tensor for update in present for tensor in (update.a, update.b)])
        # The factor in fp64 and rounded once: s / K is a number of its own, not two roundings.
        scaled = [(update.b.double() * (update.scaling / len(members))).to(dtype) for update in present]
        merged[name] = LoraWeights(torch.cat([update.a.to(dtype) for update in present]), torch.cat(scaled, dim=1), 1.0)
    return merged


def merge_heads(
    heads: Sequence[Mapping[str, Tensor]], calibration: Sequence[MemberCalibration], projection: str
) -> tuple[dict[str, Tensor], float]:
    """The mean of K heads, each member's score taken in its calibrated units, (raw - mean_k) / scale_k.

    The projection's weight is divided by scale_k, its bias b becomes (b - mean_k) / scale_k; then all is averaged.

    Returns:
        (head, offset): offset is what the merged score must have subtracted to be the members' calibrated mean; 0 where
        the projection has a bias, which then holds it.
    """
    shapes = [{name: tensor.shape for name, tensor in head.items()} for head in heads]
    if f"{projection}.weight" not in shapes[0] or any(own != shapes[0] for own in shapes):
        raise HeadMissing("the members' heads differ in their parameters, or lack the projection")
    scales = torch.tensor([member.scale for member in calibration], dtype=torch.float64)
    means = torch.tensor([member.mean for member in calibration], dtype=torch.float64)
    merged = {}
    for name in shapes[0]:
        stacked = torch.stack([head[name].double() for head in heads])
        by_member = [-1] + [1] * (stacked.dim() - 1)
        if name == f"{projection}.bias":
            stacked = stacked - means.view(by_member)
        if name.rpartition(".")[0] == projection:
            stacked = stacked / scales.view(by_member)
        merged[name] = stacked.mean(dim=0).to(_exact_dtype([head[name] for head in heads]))
    has_bias = f"{projection}.bias" in merged
    return merged, 0.0 if has_bias else float((means / scales).mean())


def projection_of(head: Head) -> str:
    """The name, in the sequence-classification model, of a head's last linear layer: the one that gives the score."""
    last = [name for name, _ in head.named_parameters()][-1]
    return head.public_name(last).rpartition(".")[0]


def _exact_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The widest of the tensors' own, at least fp32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
