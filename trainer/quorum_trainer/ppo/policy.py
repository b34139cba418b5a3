"""The models of a run on one frozen backbone: what learns, what it is compared with, and what expects its rewards.

    folder or hub id  --load_policy-->  Policy
        policy     the backbone with the adapter `policy`
        reference  the backbone alone: adapters off
        value      the backbone with the adapter `value` and a linear head

No dropout anywhere: what is recomputed is equal. Knows no rewards, no files but the backbone's, no optimiser.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from quorum_trainer.causal import load_causal
from quorum_trainer.config import ConfigError
from quorum_trainer.ppo.batches import Padded
from quorum_trainer.ppo.config import PolicyOptions
from quorum_trainer.ppo.tokens import token_entropy, token_logprobs

_POLICY, _VALUE = "policy", "value"


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """Of every token of a batch's completions, (B, R) each; what lies under the mask is meaningless.

    logprobs: nats, of the distribution that is sampled from. plain: the same at temperature 1, which is what a
    generator reports. entropy: of the distribution that is sampled from; nats.
    """

    logprobs: Tensor
    plain: Tensor
    entropy: Tensor


class Policy:
    """See the module. Made by `load_policy`.

    Args:
        model: a PEFT model with the adapter `policy`, and `value` where there is a head.
        value_head: d -> 1; None without a value model.
        tokenizer: with a chat template.
        device: of the model.
    """

    def __init__(self, model: Any, value_head: nn.Linear | None, tokenizer: Any, device: torch.device) -> None:
        self._model = model
        self._head = value_head
        self.tokenizer = tokenizer
        self.device = device
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    @property
    def has_value(self) -> bool:
        """Whether there is a value model."""
        return self._head is not None

    @property
    def max_positions(self) -> int | None:
        """Longest sequence that the backbone takes; None where its config does not say."""
        return getattr(self._model.config, "max_position_embeddings", None)

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a completion."""
        named = self._model.generation_config.eos_token_id
        ids = [] if named is None else [named] if isinstance(named, int) else named
        own = self.tokenizer.eos_token_id
        return frozenset(ids) | (frozenset() if own is None else {own})

    def figures(
        self, batch: Padded, *, temperature: float, of: Literal["policy", "reference"] = "policy", grad: bool = False
    ) -> TokenFigures:
        """Log-probabilities and entropy of the completions' tokens.

        Args:
            batch: what was sampled.
            temperature: that it was sampled at.
            of: whose.
            grad: keep the graph for a gradient, of `logprobs` alone.
        """
        with torch.set_grad_enabled(grad), self._using(_POLICY if of == "policy" else None):
            logits = self._model(
                input_ids=batch.ids,
                attention_mask=batch.attention,
                position_ids=batch.positions,
                logits_to_keep=batch.width + 1,
                use_cache=False,
            ).logits[:, :-1]
            logprobs = token_logprobs(logits, batch.completion_ids, temperature)
        with torch.no_grad():
            plain = logprobs.detach() if temperature == 1.0 else token_logprobs(logits, batch.completion_ids)
            entropy = token_entropy(logits, temperature)
        return TokenFigures(logprobs, plain, entropy)

    def values(self, batch: Padded, *, grad: bool = False) -> Tensor:
        """Expected reward before every token of the completions, (B, R) in float32."""
        assert self._head is not None
        with torch.set_grad_enabled(grad), self._using(_VALUE):
            hidden = self._model.get_base_model().base_model(
                input_ids=batch.ids, attention_mask=batch.attention, position_ids=batch.positions, use_cache=False
            )[0]
            values: Tensor = self._head(hidden[:, -batch.width - 1 : -1].float()).squeeze(-1)
            return values

    def parameters(self) -> dict[str, nn.Parameter]:
        """What the policy learns, by name."""
        return self._of(_POLICY)

    def value_parameters(self) -> dict[str, nn.Parameter]:
        """What the value model learns, by name; empty without one."""
        if self._head is None:
            return {}
        return {**self._of(_VALUE), **{f"head.{name}": own for name, own in self._head.named_parameters()}}

    def adapter(self) -> dict[str, Tensor]:
        """The policy's adapter, copied, as PEFT names it in files."""
        state = get_peft_model_state_dict(self._model, adapter_name=_POLICY)
        return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}

    def put_adapter(self, state: dict[str, Tensor]) -> None:
        """Take over an adapter that `adapter` gave."""
        set_peft_model_state_dict(self._model, state, adapter_name=_POLICY)

    def write_adapter(self, folder: Path) -> None:
        """Write the policy's adapter into an empty folder, in PEFT's format."""
        config = self._model.peft_config[_POLICY]
        config.save_pretrained(str(folder))
        save_file(self.adapter(), folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def _using(self, adapter: str | None) -> AbstractContextManager[Any]:
        if adapter is None:
            context: AbstractContextManager[Any] = self._model.disable_adapter()
            return context
        self._model.set_adapter(adapter)
        return nullcontext()

    def _of(self, adapter: str) -> dict[str, nn.Parameter]:
        part = f".{adapter}."
        return {name: own for name, own in self._model.named_parameters() if part in name and ".lora_" in name}


def load_policy(options: PolicyOptions, *, with_value: bool, seed: int, device: torch.device) -> Policy:
    """The models, their adapters as good as off (B = 0), their value 0.

    Args:
        options: which backbone, which rank.
        with_value: whether a value model is wanted.
        seed: of the adapters' A.
        device: where to.

    Raises:
        ConfigError: it cannot be loaded, or its tokenizer has no chat template or no token that ends a text.
    """
    model, tokenizer = load_causal(options.model, revision=options.revision, dtype=options.dtype, what="policy")
    if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
        raise ConfigError(f"policy: the tokenizer of {options.model} has no chat template or no EOS token")
    lora = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(seed)
    adapted = get_peft_model(model, lora, adapter_name=_POLICY)
    head = None
    if with_value:
        adapted.add_adapter(
            _VALUE,
            LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        head = nn.Linear(model.config.get_text_config().hidden_size, 1).to(device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return Policy(adapted.to(device).eval(), head, tokenizer, device)
