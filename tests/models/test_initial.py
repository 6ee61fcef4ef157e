"""Initial weights depend on seed and name, and on nothing else; how they are distributed is what the authors wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kitae.models import build as room
from kitae.models.build import build
from kitae.models.initial import keyed_by_name
from kitae.models.spec import ModelSpec

SEEDS = (0, 1, 2)
# Rescaled normals, uniforms that depend on fan-in, truncated normals (two kinds), zeroed gammas.
NETS = ["simple_cnn", "resnet9", "torchvision:mobilenet_v2", "torchvision:googlenet", "timm:test_resnet",
        "timm:test_vit", "timm:resnet10t"]  # fmt: skip


def make(name: str, seed: int = 0, *, classes: int = 7, channels: int = 3, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    spec = ModelSpec(name=name, **options)
    return build(spec, classes=classes, channels=channels, image_size=32).state_dict()


def drawn(weights: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not constant."""
    return {name for name, tensor in weights.items() if tensor.numel() > 1 and tensor.min() != tensor.max()}


def shared(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Drawn tensors of equal names and shapes, but biases of layers whose inputs differ: those differ in scale."""
    names = [name for name in first if name in second and first[name].shape == second[name].shape]
    return [
        name
        for name in names
        if name in drawn(first)
        and (not name.endswith(".bias") or name.replace(".bias", ".weight") in names)
    ]  # fmt: skip


def plain(name: str, seed: int) -> dict[str, Tensor]:
    """As the network's authors draw it, layer after layer."""
    torch.manual_seed(seed)
    return room._construct(ModelSpec(name=name), classes=7, channels=3, image_size=32).state_dict()


@pytest.mark.parametrize("name", NETS)
def test_a_seed_gives_the_same_weights_and_another_one_others(name: str) -> None:
    first, again, other = make(name), make(name), make(name, seed=1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert drawn(first) == drawn(other)
    assert not any(torch.equal(first[key], other[key]) for key in drawn(first))


@pytest.mark.parametrize(
    ("one", "two", "alike"),
    [
        ({"name": "resnet8"}, {"name": "resnet20"}, 11),
        ({"name": "resnet20"}, {"name": "resnet56"}, 23),
        ({"name": "resnet20"}, {"name": "resnet20", "stochastic_depth": 0.3, "dropout": 0.2}, 23),
        ({"name": "resnet8"}, {"name": "resnet8", "classes": 100}, 9),
        pytest.param({"name": "resnet18"}, {"name": "resnet50"}, 9, marks=pytest.mark.slow),
        ({"name": "resnet18", "stem": "small"}, {"name": "resnet18", "stem": "large"}, 21),
        ({"name": "resnet20", "channels": 1}, {"name": "resnet20"}, 22),
        ({"name": "torchvision:mobilenet_v2"}, {"name": "torchvision:mobilenet_v2", "dropout": 0.2}, 53),
        ({"name": "torchvision:mobilenet_v2"}, {"name": "torchvision:mobilenet_v2", "classes": 3}, 52),
        ({"name": "timm:test_vit"}, {"name": "timm:test_vit", "stochastic_depth": 0.1, "classes": 3}, 28),
        pytest.param({"name": "timm:resnet18"}, {"name": "timm:resnet34"}, 22, marks=pytest.mark.slow),
        ({"name": "torchvision:googlenet"}, {"name": "torchvision:googlenet", "classes": 3}, 57),
    ],
)
def test_networks_share_what_has_the_same_name_and_shape(one: dict[str, Any], two: dict[str, Any], alike: int) -> None:
    first, second = make(**one), make(**two)
    names = shared(first, second)
    assert len(names) == alike
    assert [name for name in names if not torch.equal(first[name], second[name])] == []


def test_a_width_that_changes_some_layers_leaves_the_others() -> None:
    first, second = make("resnet9", width=16), make("resnet9", width=32)
    assert shared(first, second) == [], "no layer of it has one shape at two widths"
    first, second = make("simple_cnn", channels=1), make("simple_cnn", channels=3)
    names = shared(first, second)
    assert {"conv2.weight", "fc1.weight", "classifier.weight"} <= set(names)
    assert all(torch.equal(first[name], second[name]) for name in names)


def test_no_two_parameters_share_their_numbers() -> None:
    weights = make("resnet20")
    layers = [tensor for name, tensor in weights.items() if name.endswith("conv2.weight") and tensor.shape[0] == 32]
    assert len(layers) == 3
    for i, one in enumerate(layers):
        for two in layers[:i]:
            correlation = torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]
            assert abs(float(correlation)) < 5 / one.numel() ** 0.5


@pytest.mark.parametrize("name", NETS)
def test_distributions_are_those_of_the_plain_construction(name: str) -> None:
    for key, (ours, theirs) in _by_name(lambda seed: make(name, seed), lambda seed: plain(name, seed)).items():
        if float(theirs.min()) == float(theirs.max()):
            assert torch.equal(ours, theirs), f"{key} is constant"  # ones, zeros, zeroed gammas, layer scales
            continue
        # Standard errors of a mean and, for tails no heavier than a normal's, of a standard deviation.
        error = float(theirs.std()) / theirs.numel() ** 0.5
        assert abs(float(ours.mean() - theirs.mean())) < 5 * 2**0.5 * error, key
        assert abs(float(ours.std() - theirs.std())) < 5 * error, key
        assert float(ours.abs().max()) < 1.5 * float(theirs.abs().max()) + 5 * error, key


def _by_name(*makers: Callable[[int], dict[str, Tensor]]) -> dict[str, tuple[Tensor, ...]]:
    """Each parameter's values over a few seeds, as each maker gives them."""
    found = [[maker(seed) for seed in SEEDS] for maker in makers]
    floats = [name for name, tensor in found[0][0].items() if tensor.is_floating_point()]
    return {
        name: tuple(torch.cat([weights[name].flatten() for weights in runs]) for runs in found) for name in floats
    }  # fmt: skip


def test_a_gamma_that_its_authors_zeroed_stays_zero() -> None:
    weights = make("timm:resnet10t")
    assert float(weights["layer1.0.bn2.weight"].abs().max()) == 0.0
    assert torch.equal(weights["layer1.0.bn1.weight"], torch.ones(64))


def test_the_generator_moves_by_one_number_whatever_the_network() -> None:
    after = []
    for name in ("simple_cnn", "resnet8", "timm:test_vit", "torchvision:googlenet"):
        make(name)
        after.append(float(torch.rand(())))
    assert len(set(after)) == 1


class Odd(nn.Module):
    """All that a construction may do with random numbers but fill a parameter in place."""

    def __init__(self, *, more: bool = False, asks: bool = False) -> None:
        super().__init__()
        if more:
            self.first = nn.Linear(3, 3)
        if asks:
            assert torch.empty(2).fill_(1.0).sum().item() == 2.0  # there are no values in an outline
        self.scaled = nn.Parameter(torch.randn(4, 5) * 0.02)
        self.orthogonal = nn.Parameter(nn.init.orthogonal_(torch.empty(4, 4)))
        narrow = nn.init.trunc_normal_(torch.empty(50), a=-0.5, b=0.5)  # draws again until all lie within
        self.narrow = nn.Parameter(narrow)
        self.register_buffer("frequencies", torch.cat([torch.randn(3), torch.rand(2)]))
        self.twins = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.twins[1].load_state_dict(self.twins[0].state_dict())


@pytest.mark.parametrize("asks", [False, True])
def test_whatever_a_construction_does_with_its_random_numbers(asks: bool) -> None:
    def odd(**options: bool) -> dict[str, Tensor]:
        torch.manual_seed(3)
        return keyed_by_name(lambda: Odd(**options), outline=lambda: Odd(**options)).state_dict()

    one, more = odd(asks=asks), odd(asks=asks, more=True)
    for name in ("scaled", "orthogonal", "frequencies", "twins.0.weight", "twins.1.bias"):
        assert torch.equal(one[name], more[name]), name
    assert torch.allclose(one["orthogonal"] @ one["orthogonal"].T, torch.eye(4), atol=1e-5)
    assert torch.equal(one["twins.0.weight"], one["twins.1.weight"])
    assert float(more["narrow"].abs().max()) <= 0.5
    assert all(torch.equal(tensor, odd(asks=asks)[name]) for name, tensor in one.items())
