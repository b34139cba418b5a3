"""How members are trained: the two phases, the loss, and what makes members differ.

Knows no torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from quorum_trainer.config.base import ConfigModel

Schedule = Literal["constant", "linear", "cosine"]
Layers = (
    Literal["all", "top-half", "top-third", "top-sixth"]
    | Annotated[float, Field(gt=0, le=1)]
    | Annotated[list[int], Field(min_length=1)]
)


class LoraOptions(ConfigModel):
    """An adapter on every linear layer of the chosen layers.

    dropout: on the adapter's input. layers: all, a named or numeric fraction of the layers from the top (rounded up),
    or a list of layer indices from the bottom. What is below the lowest adapted layer is run once for all members.
    """

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    layers: Layers = "all"


class Optimisation(ConfigModel):
    """How one phase is optimised.

    lr: peak learning rate; head_lr: the heads' own, `lr` if left out. warmup: share of the steps. clip: gradient norm,
    a member's. micro_batch_pairs: pairs whose activations are held at once, all of the batch if left out: changes
    memory, not the result (but for the masks of adapters' dropout). evaluate_every: epochs between two looks at the
    held-out loss; patience: stop after so many looks without a better one, and go back to the best.
    """

    epochs: float = Field(1, gt=0, allow_inf_nan=False)
    batch_pairs: int = Field(16, ge=1)
    micro_batch_pairs: int | None = Field(None, ge=1)
    lr: float = Field(gt=0, allow_inf_nan=False)
    head_lr: float | None = Field(None, gt=0, allow_inf_nan=False)
    schedule: Schedule = "cosine"
    warmup: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    evaluate_every: float | None = Field(None, gt=0)
    patience: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check_patience(self) -> Optimisation:
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError("patience needs evaluate_every")
        return self


class PhaseOne(Optimisation):
    """Phase 1: heads together in one data order, and what lies under them.

    method: `full` trains the whole backbone, `shared_adapter` one adapter for all members, `heads` the heads alone.
    """

    method: Literal["full", "shared_adapter", "heads"]
    lora: LoraOptions = LoraOptions()

    @model_validator(mode="after")
    def _check_lora(self) -> PhaseOne:
        if self.lora != LoraOptions() and self.method != "shared_adapter":
            raise ValueError(f"method '{self.method}' has no adapter: lora would be ignored")
        return self


class PhaseTwo(Optimisation):
    """Phase 2: the backbone frozen; every member's adapter and head.

    order: `own` gives every member its own data order; `shared` one for all, so that the trunk runs once.
    members_at_once: members that are computed in one pass; changes speed and memory, not the result. If left out: all,
    but on a CPU one where orders are own, see `members_in_a_pass`.
    """

    lora: LoraOptions = LoraOptions()
    order: Literal["own", "shared"] = "own"
    members_at_once: int | None = Field(None, ge=1)

    def members_in_a_pass(self, num_members: int, device_type: str) -> int:
        """How many of `num_members`.

        Members with orders of their own share no layer: together their rows are filled up to the longest. On a CPU
        that costs, and larger products gain nothing (`quorum bench train`); on CUDA few large kernels gain more.
        """
        if self.members_at_once is not None:
            return min(self.members_at_once, num_members)
        return 1 if device_type == "cpu" and self.order == "own" else num_members


class LossOptions(ConfigModel):
    """What a pair costs.

    centring: gamma of gamma * (r_chosen + r_rejected)^2 (arXiv 2312.09244). label_smoothing: probability that a label
    is wrong. margins: the chosen response must win by the pair's `margin` (arXiv 2307.09288, equation 2).
    """

    centring: float = Field(0.01, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    margins: bool = False


class Diversity(ConfigModel):
    """What makes members differ beyond their seeds (first weights, data order, dropout).

    bootstrap: every member learns from its own draw of the pairs, with replacement (Breiman 1996).
    lr_spread: members' learning rates lie between lr / lr_spread and lr * lr_spread, evenly in their logarithm.
    dropout_spread: members' adapter dropouts lie between dropout - spread and dropout + spread, evenly.
    anchor: weight of the squared distance to the member's own first weights (anchored ensembles, arXiv 1810.05546).
    nuclear_norm: weight of ||A||_* / ||A||_F of the members' stacked lora_A, which is maximised (UP-RLHF,
    arXiv 2401.00243): it ties members together, so they no longer equal members trained alone.
    """

    bootstrap: bool = False
    lr_spread: float = Field(1.0, ge=1, allow_inf_nan=False)
    dropout_spread: float = Field(0.0, ge=0, lt=1)
    anchor: float = Field(0.0, ge=0, allow_inf_nan=False)
    nuclear_norm: float = Field(0.0, ge=0, allow_inf_nan=False)
