"""The architecture's own classification head, stacked over members: pooled vectors in, raw scores out.

    pooled (K, N, d) or (1, N, d)  --K heads at once-->  raw scores (K, N)

The head is the one that `AutoModelForSequenceClassification` has, so that a member also scores there; only the pooling
before it is ours. Knows nothing of packing, adapters or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from quorum_model.errors import HeadMissing, Unsupported
from quorum_model.folded import ALL_MEMBERS


@dataclass(frozen=True, slots=True)
class HeadFamily:
    """How one family of architectures turns a pooled vector (N, d) into a logit (N, 1).

    modules: names of the head's modules inside the sequence-classification model, in the order of `run`'s arguments;
    a leading `body.` stands for the family's base-model prefix.
    """

    modules: tuple[str, ...]
    run: Callable[..., Tensor]


def _first_token(pooled: Tensor) -> Tensor:
    """Heads that take a whole sequence and index its first token get a sequence of one."""
    return pooled[:, None]


HEAD_FAMILIES: tuple[HeadFamily, ...] = (
    # decoders: Llama, Qwen, Gemma, Mistral, GPT-2, ...
    HeadFamily(("score",), lambda score, x: score(x)),
    # ModernBERT
    HeadFamily(("head", "classifier"), lambda head, classifier, x: classifier(head(x))),
    # DistilBERT
    HeadFamily(("pre_classifier", "classifier"), lambda dense, classifier, x: classifier(torch.relu(dense(x)))),
    # DeBERTa
    HeadFamily(("pooler", "classifier"), lambda pooler, classifier, x: classifier(pooler(_first_token(x)))),
    # BERT
    HeadFamily(("body.pooler", "classifier"), lambda pooler, classifier, x: classifier(pooler(_first_token(x)))),
    # RoBERTa, Electra, ...: one module that is dense, activation, projection
    HeadFamily(("classifier",), lambda classifier, x: classifier(_first_token(x))),
)


class Head(nn.Module):
    """One member's head, taken from a sequence-classification model: (N, d) -> (N,).

    Its parameters are named as in that model (`classifier.weight`, `bert.pooler.dense.bias`), with `/` for `.` in the
    module part, since a module name holds no dot.
    """

    def __init__(self, modules: dict[str, nn.Module], run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name.replace(".", "/"): module for name, module in modules.items()})
        self._run = run

    def forward(self, pooled: Tensor) -> Tensor:
        """(N, d) -> (N,)."""
        logits: Tensor = self._run(*self.parts.values(), pooled)
        if logits.shape != (pooled.shape[0], 1):
            raise RuntimeError(f"the head gave {tuple(logits.shape)} for {pooled.shape[0]} pooled vectors")
        return logits.squeeze(-1)

    @property
    def module_names(self) -> list[str]:
        """Names of the head's modules inside the sequence-classification model."""
        return [name.replace("/", ".") for name in self.parts]

    def public_name(self, name: str) -> str:
        """The name that one of this module's parameters has in the sequence-classification model."""
        return name.removeprefix("parts.").replace("/", ".")


def head_of(model: nn.Module, body_prefix: str) -> Head:
    """Take the head out of a sequence-classification model with one label.

    Raises:
        Unsupported: no known head, or more than one label.
    """
    names = dict(model.named_modules())
    for family in HEAD_FAMILIES:
        wanted = [name.replace("body.", f"{body_prefix}.", 1) for name in family.modules]
        if all(name in names for name in wanted):
            head = Head({name: names[name] for name in wanted}, family.run).eval()
            _check_one_label(head)
            return head
    raise Unsupported(f"{type(model).__name__} has no head that this version knows")


def _check_one_label(head: Head) -> None:
    last = list(head.parameters())[-1]
    if last.shape[0] != 1:
        raise Unsupported(f"a reward head has one label, this one has {last.shape[0]}")


class StackedHeads(nn.Module):
    """K heads of one architecture, their parameters stacked: (K, ...) each.

    Args:
        template: the architecture's head; only its structure is used.
        states: a state a member, by the names of the sequence-classification model.

    Raises:
        HeadMissing: a member lacks a parameter, or has one of another shape.
        Unsupported: a member has a trained parameter that is not part of the head, and would be ignored.
    """

    def __init__(self, template: Head, states: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        # In a list, so that the template's own parameters are neither trained, moved nor saved.
        self._template = [template]
        self.names = [template.public_name(name) for name, _ in template.named_parameters()]
        for member, state in enumerate(states):
            unknown = sorted(set(state) - set(self.names))
            if unknown:
                raise Unsupported(f"member {member}: {unknown[0]} was trained, but is not part of the head")
        stacked = {}
        for name, parameter in template.named_parameters():
            public = template.public_name(name)
            for member, state in enumerate(states):
                if public not in state or state[public].shape != parameter.shape:
                    raise HeadMissing(f"member {member}: head parameter {public} is missing or of another shape")
            stacked[_key(public)] = nn.Parameter(torch.stack([state[public].detach() for state in states]))
        self.parameters_by_name = nn.ParameterDict(stacked)

    def forward(self, pooled: Tensor, which: slice = ALL_MEMBERS) -> Tensor:
        """(K, N, d) or (1, N, d) -> (K, N), in the heads' own dtype; K of the members that `which` picks."""
        template = self._template[0]
        parameters = {
            name: self.parameters_by_name[_key(template.public_name(name))][which]
            for name, _ in template.named_parameters()
        }
        members = next(iter(parameters.values())).shape[0]
        pooled = pooled.to(next(iter(parameters.values())).dtype)

        def run(state: dict[str, Tensor], x: Tensor) -> Tensor:
            scores: Tensor = functional_call(template, state, (x,))
            return scores

        if pooled.shape[0] == 1 and members > 1:
            return vmap(run, in_dims=(0, None))(parameters, pooled[0])
        return vmap(run)(parameters, pooled)

    def member_state(self, member: int) -> dict[str, Tensor]:
        """One member's head, by the names of the sequence-classification model."""
        return {name: self.parameters_by_name[_key(name)][member].detach().clone() for name in self.names}


def _key(public_name: str) -> str:
    return public_name.replace(".", "/")
