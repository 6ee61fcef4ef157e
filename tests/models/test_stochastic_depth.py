"""Stochastic depth does what the paper says: how often, by how much, and nothing in eval."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kitae.models.build import build
from kitae.models.layers import StochasticDepth, linear_rates
from kitae.models.spec import ModelSpec


def draw(p: float, count: int = 20_000) -> torch.Tensor:
    torch.manual_seed(0)
    return StochasticDepth(p)(torch.ones(count, 2, 3, 1))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_survival_frequency_and_scale(p: float) -> None:
    out = draw(p)
    survived = out[:, 0, 0, 0] != 0
    sigma = (p * (1 - p) / len(out)) ** 0.5
    assert abs(survived.float().mean().item() - (1 - p)) < 4 * sigma
    assert torch.allclose(out[survived], torch.tensor(1 / (1 - p)))
    assert abs(out.mean().item() - 1) < 4 * sigma / (1 - p), "the expectation is unchanged"


def test_a_sample_is_dropped_whole_and_alone() -> None:
    out = draw(0.5, 500).flatten(1)
    assert torch.equal(out, out[:, :1].expand_as(out)), "whole"
    assert 0 < (out[:, 0] == 0).sum() < 500, "alone"


def test_neighbouring_draws_are_independent() -> None:
    kept = (draw(0.5)[:, 0, 0, 0] != 0).double()
    assert abs(torch.corrcoef(torch.stack([kept[:-1], kept[1:]]))[0, 1].item()) < 4 / len(kept) ** 0.5


def test_eval_is_the_identity() -> None:
    layer = StochasticDepth(0.9).eval()
    x = torch.randn(4, 3)
    assert layer(x) is x


def test_the_gradient_of_a_dropped_branch_is_zero() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, requires_grad=True)
    out = StochasticDepth(0.5)(x)
    out.sum().backward()
    assert x.grad is not None
    dropped = (out == 0).all(dim=1)
    assert dropped.any()
    assert (x.grad[dropped] == 0).all()
    assert torch.allclose(x.grad[~dropped], torch.tensor(2.0))


def test_dtype_and_memory_format_are_kept() -> None:
    x = torch.randn(4, 8, 5, 5).bfloat16().contiguous(memory_format=torch.channels_last)
    out = StochasticDepth(0.3)(x)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_rate_outside_its_range(p: float) -> None:
    with pytest.raises(ValueError, match="must be in"):
        StochasticDepth(p)


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
