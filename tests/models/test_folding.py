"""BatchNorm is folded where that changes nothing but rounding, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kitae.models.build import build
from kitae.models.folding import folded
from kitae.models.spec import ModelSpec

IMAGES = torch.rand((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module) -> nn.Module:
    """With statistics and weights of BatchNorm that matter."""
    torch.manual_seed(1)
    for norm in norms(model):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return model


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def fold(model: nn.Module, images: Tensor = IMAGES) -> nn.Module:
    return folded(model, lambda network: network(images))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet9", 0),
        ("resnet18", 0),
        ("timm:tf_efficientnet_lite0", 0),
        ("torchvision:mobilenet_v3_small", 0),
        ("timm:test_resnet", 0),
    ],
)
def test_a_folded_network_computes_the_same(name: str, left: int) -> None:
    model = trained(build(ModelSpec(name=name), classes=5, channels=3, image_size=64)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    smaller = fold(model)
    assert len(norms(model)) > len(norms(smaller)) == left
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(smaller(IMAGES), model.eval()(IMAGES), rtol=1e-4, atol=1e-4)


def test_a_network_without_batchnorm_is_returned() -> None:
    model = build(ModelSpec(name="timm:test_vit"), classes=5, channels=3, image_size=64)
    assert fold(model) is model


class Layers(nn.Module):
    """A convolution and a BatchNorm, used in some way."""

    def __init__(self, use: Callable[[nn.Conv2d, nn.BatchNorm2d, Tensor], Tensor], affine: bool = True) -> None:
        super().__init__()
        self.conv, self.norm, self.use = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, affine=affine), use

    def forward(self, images: Tensor) -> Tensor:
        return self.use(self.conv, self.norm, images)


@pytest.mark.parametrize("affine", [True, False])
def test_a_convolution_and_its_batchnorm_are_one(affine: bool) -> None:
    model = trained(Layers(lambda conv, norm, x: F.relu(norm(conv(x))), affine))
    smaller = fold(model)
    assert not norms(smaller)
    with torch.no_grad():
        torch.testing.assert_close(smaller(IMAGES), model.eval()(IMAGES))


def both(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    seen = conv(x)
    return norm(seen) + seen


def own_weight(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return norm(conv(x)) * norm.weight.sum()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "use",
    [
        both,
        own_weight,
        lambda conv, norm, x: norm(F.relu(conv(x))),
        lambda conv, norm, x: norm(conv(conv(x))),
        lambda conv, norm, x: norm(norm(conv(x))),
        lambda conv, norm, x: norm(conv(x)) + F.conv2d(x, conv.weight, padding=1),
        lambda conv, norm, x: conv(norm(x)),
    ],
    ids=["another reader", "reads a weight", "relu between", "twice", "norm twice", "weight used again", "before"],
)
def test_other_uses_of_the_layers_are_left_alone(use: Callable[[nn.Conv2d, nn.BatchNorm2d, Tensor], Tensor]) -> None:
    model = trained(Layers(use))
    assert fold(model) is model
