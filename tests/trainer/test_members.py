"""How members begin, what is clipped, and random streams that do not touch each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from quorum_trainer.config import ConfigError, LoraOptions, Optimisation
from quorum_trainer.training.draws import adapted_modules, draw_adapter, draw_head, stream_seed
from quorum_trainer.training.loop import schedule_factor
from quorum_trainer.training.members import MemberDropout, clip_members
from tests.reference.tiny_models import ARCHITECTURES, make_backbone


def named(name: str) -> Any:
    return next(a for a in ARCHITECTURES if a.name == name)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("layers", "indices"),
    [("all", {0, 1, 2}), ("top-half", {1, 2}), ("top-third", {2}), ("top-sixth", {2}), ([0, 2], {0, 2})],
)
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "distilbert", "modernbert"])
def test_the_chosen_layers_and_no_others_are_adapted(name: str, layers: Any, indices: set[int]) -> None:
    modules = adapted_modules(make_backbone(named(name)), layers)
    found = {int(next(part for part in module.split(".") if part.isdigit())) for module in modules}
    assert found == indices
    assert len(modules) % len(indices) == 0


def test_layers_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="layers 0 to 2"):
        adapted_modules(make_backbone(named("bert")), [3])


def test_an_adapter_begins_as_no_change_and_differs_by_seed() -> None:
    backbone = make_backbone(named("bert"))
    first, again, other = (draw_adapter(backbone, LoraOptions(rank=4, alpha=6), generator(s)) for s in (1, 1, 2))
    name = sorted(first)[0]
    assert first[name].scaling == 1.5
    assert not first[name].b.any()
    torch.testing.assert_close(first[name].a, again[name].a, rtol=0, atol=0)
    assert not torch.equal(first[name].a, other[name].a)
    assert float(first[name].a.abs().max()) <= 32**-0.5  # Kaiming's bound for a = sqrt 5: 1 / sqrt(d_in)


def test_only_what_the_checkpoint_lacks_is_drawn() -> None:
    backbone = make_backbone(named("modernbert"))
    kept = draw_head(backbone, generator(1), redraw_projection=False)
    drawn = draw_head(backbone, generator(1), redraw_projection=True)
    for key, parameter in backbone.head.named_parameters():
        public = backbone.head.public_name(key)
        assert torch.equal(kept[public], parameter)
        assert torch.equal(drawn[public], parameter) == (public != "classifier.weight")
    assert not drawn["classifier.bias"].any()
    assert drawn["head.norm.weight"].all()  # a norm of zeros would silence the head


def test_each_member_is_clipped_as_if_alone() -> None:
    shapes = [(3, 4, 2), (3, 5)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for index, parameter in enumerate(parameters):
        parameter.grad = torch.randn(parameter.shape, generator=generator(index)) * torch.tensor([0.01, 1.0, 9.0]).view(
            3, *[1] * (parameter.dim() - 1)
        )
    expected = []
    for member in range(3):
        alone = [nn.Parameter(torch.zeros(shape[1:])) for shape in shapes]
        for parameter, stacked in zip(alone, parameters, strict=True):
            assert stacked.grad is not None
            parameter.grad = stacked.grad[member].clone()
        nn.utils.clip_grad_norm_(alone, 0.5)
        expected.append([parameter.grad for parameter in alone])
    clip_members(parameters, 0.5)
    for member in range(3):
        for stacked, alone_grad in zip(parameters, expected[member], strict=True):
            assert stacked.grad is not None
            torch.testing.assert_close(stacked.grad[member], alone_grad)


def test_dropout_of_a_member_does_not_depend_on_the_others() -> None:
    together, alone = MemberDropout([0.3, 0.3], [5, 6]), MemberDropout([0.3], [6])
    for step, width in enumerate((7, 11, 4)):
        together.at(step)
        alone.at(step)
        # Alone the member's row is shorter: the longer rows are filled up by its companions' length.
        both = together.of_layer("a")(torch.ones(2, width + 3, 8), slice(None))
        one = alone.of_layer("a")(torch.ones(1, width, 8), slice(None))
        torch.testing.assert_close(both[1, :width], one[0], rtol=0, atol=0)
        assert not torch.equal(both[0, :width], both[1, :width])


def test_dropout_keeps_the_mean() -> None:
    out = MemberDropout([0.25], [1]).of_layer("a")(torch.ones(1, 200, 100), slice(None))
    assert float((out == 0).float().mean()) == pytest.approx(0.25, abs=0.01)  # 20,000 draws: se 0.003
    assert float(out.max()) == pytest.approx(1 / 0.75)


def test_streams_are_told_apart_by_every_name() -> None:
    names = [(s, phase, what) for s in range(20) for phase in ("member", "shared") for what in ("adapter", "order")]
    assert len({stream_seed(*name) for name in names}) == len(names)
    assert stream_seed(1, "a") == stream_seed(1, "a")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_schedule_by_hand(schedule: Any, expected: list[float]) -> None:
    options = Optimisation(lr=1.0, schedule=schedule, warmup=1 / 3)
    assert [schedule_factor(step, 6, options) for step in range(6)] == pytest.approx(expected)
