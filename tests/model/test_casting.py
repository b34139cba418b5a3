"""What is rounded to bf16 and what is not, on the architectures that normalise in different ways."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quorum_model.casting import cast_weights, is_norm
from quorum_model.model import EnsembleModel
from tests.reference.tiny_models import ARCHITECTURES, Architecture, make_backbone, make_model, random_member

LLAMA = next(a for a in ARCHITECTURES if a.name == "llama")
BERT = next(a for a in ARCHITECTURES if a.name == "bert")
CPU = torch.device("cpu")


def with_drawn_norms(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """New norms are ones and zeros, which every dtype holds."""
    torch.manual_seed(0)
    for module in model.modules():
        if is_norm(module):
            for parameter in module.parameters(recurse=False):
                parameter.data = (1 + 0.2 * torch.randn_like(parameter)).to(dtype).float()
    return model


def test_rounding_weights_leaves_rotary_frequencies_alone() -> None:
    model = make_model(LLAMA)
    before = model.model.rotary_emb.inv_freq.clone()
    cast_weights(model, torch.bfloat16, torch.device("cpu"))
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == torch.bfloat16
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, before, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_norms_stay_exact_and_layers_between_them_are_bf16(architecture: Architecture) -> None:
    backbone = make_backbone(architecture)
    with_drawn_norms(backbone.model, torch.float32)
    members = [random_member(backbone, rank=2, seed=seed) for seed in range(2)]
    before = {name: tensor.clone() for name, tensor in backbone.body.named_parameters()}
    cast_weights(backbone.model, torch.bfloat16, CPU)
    norms = {
        f"{prefix}.{name}"
        for prefix, module in backbone.body.named_modules()
        if is_norm(module)
        for name, _ in module.named_parameters(recurse=False)
    }
    assert norms
    for name, tensor in backbone.body.named_parameters():
        assert tensor.dtype == (torch.float32 if name in norms else torch.bfloat16), name
        if name in norms:
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    model = EnsembleModel(
        backbone, [m.lora for m in members], [m.head for m in members], "last" if backbone.is_causal else "mean"
    )
    seen: set[torch.dtype] = set()
    for module in backbone.body.modules():
        if is_norm(module):
            module.register_forward_hook(lambda _m, _a, output: seen.add(output.dtype))
    with torch.no_grad():
        scores = model([model.probe_row()])
    assert seen == {torch.bfloat16}
    assert model.dtype == torch.bfloat16
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("architecture", [BERT, LLAMA], ids=lambda a: a.name)
def test_a_checkpoint_that_was_bf16_has_nothing_to_lose(architecture: Architecture) -> None:
    model = with_drawn_norms(make_model(architecture), torch.bfloat16)
    cast_weights(model, torch.bfloat16, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(module._forward_hooks for module in model.modules())


def test_exact_norms_are_closer_to_fp32() -> None:
    """Of a BERT, whose every sublayer ends in a norm; a Llama of this size shows no difference."""
    exact = with_drawn_norms(make_model(BERT), torch.float32).eval()
    kept = with_drawn_norms(make_model(BERT), torch.float32).eval()
    rounded = with_drawn_norms(make_model(BERT), torch.bfloat16).eval()
    ids = torch.arange(40)[None]
    for model in (exact, kept, rounded):
        model.load_state_dict(
            {name: tensor for name, tensor in exact.state_dict().items() if "orm" not in name}, strict=False
        )
    cast_weights(kept, torch.bfloat16, CPU)
    cast_weights(rounded, torch.bfloat16, CPU)
    with torch.no_grad():
        hidden = [model.base_model(input_ids=ids).last_hidden_state.float() for model in (exact, kept, rounded)]
    assert (hidden[1] - hidden[0]).abs().mean() < 0.9 * (hidden[2] - hidden[0]).abs().mean()


def test_a_norm_that_gives_a_pair_is_left_to_its_model() -> None:
    from transformers import IBertConfig, IBertForSequenceClassification

    config = IBertConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=1
    )
    model = with_drawn_norms(IBertForSequenceClassification(config).eval(), torch.float32)
    cast_weights(model, torch.bfloat16, CPU)
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=torch.arange(2, 20)[None]).logits).all()
