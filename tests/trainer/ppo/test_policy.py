"""The models of a run against plain Transformers and PEFT, one unpadded sequence at a time."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from quorum_trainer.config import ConfigError
from quorum_trainer.ppo.batches import pad
from quorum_trainer.ppo.config import PolicyOptions
from quorum_trainer.ppo.policy import Policy, load_policy
from tests.trainer.ppo.tiny import CPU, options

PAIRS = [((1, 5, 6, 7), (8, 9, 2)), ((1, 4), (10, 11, 12, 13, 14)), ((1, 3, 3, 3, 3, 3), (2,))]
# Padding changes the order of sums in attention only: fp32 rounding of log-probabilities of order 3.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def policy(policy_folder: Path) -> Policy:
    made = load_policy(options(policy_folder), with_value=True, seed=0, device=CPU)
    generator = torch.Generator().manual_seed(1)
    for own in {**made.parameters(), **made.value_parameters()}.values():
        own.data.add_(torch.randn(own.shape, generator=generator) * 0.1)
    return made


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_log_probabilities_are_those_of_transformers_and_peft(
    policy: Policy, policy_folder: Path, tmp_path: Path, temperature: float
) -> None:
    policy.write_adapter(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(policy_folder)
    batch = pad(PAIRS, 0, CPU)
    own = policy.figures(batch, temperature=temperature)
    reference = policy.figures(batch, temperature=temperature, of="reference")

    def expected(model: torch.nn.Module, prompt: tuple[int, ...], completion: tuple[int, ...], t: float) -> list[float]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
        logs = (logits / t).log_softmax(-1)
        return [logs[len(prompt) - 1 + k, token].item() for k, token in enumerate(completion)]

    for row, (prompt, completion) in enumerate(PAIRS):
        count = len(completion)
        want = expected(plain, prompt, completion, temperature)
        np.testing.assert_allclose(reference.logprobs[row, :count], want, **ROUNDING)
    adapted = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    differences = []
    for row, (prompt, completion) in enumerate(PAIRS):
        count = len(completion)
        want = expected(adapted, prompt, completion, temperature)
        np.testing.assert_allclose(own.logprobs[row, :count], want, **ROUNDING)
        np.testing.assert_allclose(own.plain[row, :count], expected(adapted, prompt, completion, 1.0), **ROUNDING)
        differences += list(np.abs(np.array(want) - reference.logprobs[row, :count].numpy()))
    assert max(differences) > 0.05  # else adapter on and off would be the same test


def test_values_do_not_depend_on_their_neighbours_and_come_before_their_token(policy: Policy) -> None:
    together = policy.values(pad(PAIRS, 0, CPU))
    for row, pair in enumerate(PAIRS):
        alone = policy.values(pad([pair], 0, CPU))
        np.testing.assert_allclose(together[row, : len(pair[1])].detach(), alone[0].detach(), **ROUNDING)
    prompt, completion = PAIRS[1]
    changed = policy.values(pad([(prompt, (*completion[:2], 3, 3, 3))], 0, CPU))
    first = policy.values(pad([PAIRS[1]], 0, CPU))
    np.testing.assert_allclose(changed[0, :3].detach(), first[0, :3].detach(), **ROUNDING)  # V_2 has not seen token 2
    assert abs(changed[0, 3] - first[0, 3]) > 1e-3


def test_absolute_positions_do_not_count_the_padding(policy_folder: Path, tmp_path: Path) -> None:
    """Llama's positions are relative, and would hide it."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=16, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(policy_folder).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PEFT says that it turns GPT-2's weights round
        made = load_policy(options(tmp_path), with_value=True, seed=0, device=CPU)
    assert made.value_parameters()
    together = made.figures(pad(PAIRS, 0, CPU), temperature=1.0).logprobs
    for row, pair in enumerate(PAIRS):
        alone = made.figures(pad([pair], 0, CPU), temperature=1.0).logprobs[0]
        np.testing.assert_allclose(together[row, : len(pair[1])], alone, **ROUNDING)


def test_each_gradient_reaches_its_own_adapter(policy: Policy) -> None:
    batch = pad(PAIRS, 0, CPU)
    policy.figures(batch, temperature=1.0, grad=True).logprobs[batch.mask].sum().backward()  # type: ignore[no-untyped-call]
    assert all(own.grad is not None and own.grad.abs().sum() > 0 for own in policy.parameters().values())
    assert all(own.grad is None for own in policy.value_parameters().values())
    for own in policy.parameters().values():
        own.grad = None
    policy.values(batch, grad=True)[batch.mask].sum().backward()  # type: ignore[no-untyped-call]
    grads = {name: own.grad for name, own in policy.value_parameters().items()}
    # The last layer's MLP and attention count; nothing of the value adapter lies above the hidden states.
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads.values()), [
        name for name, grad in grads.items() if grad is None or not grad.abs().sum()
    ]
    assert all(own.grad is None for own in policy.parameters().values())
    assert {*map(id, policy.parameters().values())}.isdisjoint(map(id, policy.value_parameters().values()))


def test_a_new_policy_is_its_reference(policy_folder: Path) -> None:
    fresh = load_policy(options(policy_folder), with_value=True, seed=0, device=CPU)
    batch = pad(PAIRS, 0, CPU)
    own, reference = (fresh.figures(batch, temperature=1.0, of=of).logprobs for of in ("policy", "reference"))  # type: ignore[arg-type]
    assert torch.equal(own, reference)
    assert not fresh.values(batch).any()
    again = load_policy(options(policy_folder), with_value=True, seed=0, device=CPU)
    assert all(torch.equal(own, again.parameters()[name]) for name, own in fresh.parameters().items())


def test_an_adapter_can_be_put_back(policy: Policy) -> None:
    batch = pad(PAIRS, 0, CPU)
    before, kept = policy.figures(batch, temperature=1.0).logprobs, policy.adapter()
    policy.put_adapter({name: torch.zeros_like(own) for name, own in kept.items()})
    assert not torch.equal(policy.figures(batch, temperature=1.0).logprobs, before)
    policy.put_adapter(kept)
    assert torch.equal(policy.figures(batch, temperature=1.0).logprobs, before)


def test_what_cannot_be_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy: .* cannot be loaded"):
        load_policy(PolicyOptions(model=str(tmp_path)), with_value=False, seed=0, device=CPU)
