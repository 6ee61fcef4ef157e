"""Stochastic depth does what the paper says: how often, by how much, and nothing in eval."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from kitae.models.build import build
from kitae.models.layers import linear_rates, stochastic_depth
from kitae.models.spec import ModelSpec


def test_torchvisions_layer_is_what_the_paper_says() -> None:
    torch.manual_seed(0)
    layer = stochastic_depth(0.5)
    out = layer(torch.ones(20_000, 2, 3, 1)).flatten(1)
    assert torch.equal(out, out[:, :1].expand_as(out)), "a sample is dropped whole"
    assert set(out[:, 0].tolist()) == {0.0, 2.0}, "a kept branch is scaled by 1 / (1 - p)"
    assert abs(out.mean().item() - 1) < 4 * (1 / len(out)) ** 0.5
    x = torch.randn(4, 3)
    assert layer.eval()(x) is x


def test_rates_are_linear_from_nothing_to_the_last_block() -> None:
    assert linear_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert linear_rates(0.3, 1) == [0.3]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("resnet9", 2), ("resnet8", 3), ("resnet20", 9), ("resnet18", 8), ("resnet50", 16), ("wide_resnet28_10", 12)],
)
def test_every_block_has_its_rate(name: str, blocks: int) -> None:
    with torch.device("meta"):
        model = build(ModelSpec(name=name, stochastic_depth=0.2), classes=10, channels=3, image_size=32)
        plain = build(ModelSpec(name=name), classes=10, channels=3, image_size=32)
    rates = [module.p for module in model.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx(linear_rates(0.2, blocks)[1:]), "the first, at 0, is an identity"
    assert not any(isinstance(module, StochasticDepth) for module in plain.modules())
    assert list(model.state_dict()) == list(plain.state_dict())


def test_a_dropped_block_is_its_shortcut() -> None:
    torch.manual_seed(0)
    model = build(ModelSpec(name="resnet8", stochastic_depth=0.5), classes=10, channels=3, image_size=32)
    block = model.get_submodule("stages.2.0")
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = torch.randn(32, 32, 8, 8)
    with torch.no_grad():
        out, shortcut = block(x), torch.relu(block.get_submodule("shortcut")(x))
    same = torch.tensor([torch.equal(a, b) for a, b in zip(out, shortcut, strict=True)])
    assert 4 < same.sum() < 28
