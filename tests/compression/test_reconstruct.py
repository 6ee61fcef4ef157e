"""Layers compute again what they computed before channels were removed."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kitae.compression import least_squares
from kitae.compression import reconstruct as solving
from kitae.compression.channels import remove_channels
from kitae.compression.reconstruct import reconstruct
from tests.compression.tiny_world import SHAPE, Data, TinyNet, accuracy, noise

NOISE = noise(*SHAPE)
GONE = {"first": (4, 5, 6, 7)}


class Tokens(nn.Module):
    """[N, C, H, W] -> [N, H * W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


def doubled(reader: nn.Module, between: nn.Module | None = None) -> tuple[nn.Sequential, nn.Sequential]:
    """A network whose last four channels are copies of the first four, and the same without the copies."""
    torch.manual_seed(0)

    def made(width: int, reader: nn.Module) -> nn.Sequential:
        first = nn.Conv2d(3, width, 3, bias=False)
        return nn.Sequential(OrderedDict(first=first, between=between or nn.ReLU(), reader=reader))

    whole = made(8, reader)
    whole.first.weight.data[4:] = whole.first.weight.data[:4]
    narrow = copy.deepcopy(reader)
    narrow.weight = nn.Parameter(reader.weight.data[:, :4].clone())
    if isinstance(narrow, nn.Conv2d):
        narrow.in_channels = 4
    small = made(4, narrow)
    small.first.weight.data = whole.first.weight.data[:4].clone()
    return whole.eval(), small.eval()


READERS = {
    "3x3": lambda: nn.Conv2d(8, 5, 3, padding=1),
    "1x1 without a bias": lambda: nn.Conv2d(8, 5, 1, bias=False),
    "stride": lambda: nn.Conv2d(8, 5, 3, stride=2),
    "dilation": lambda: nn.Conv2d(8, 5, 3, dilation=2, padding=3),
    "oblong": lambda: nn.Conv2d(8, 5, (1, 3), stride=(2, 1), padding=(0, 2)),
    "linear over tokens": lambda: nn.Linear(8, 5),
}


@pytest.mark.parametrize("name", READERS)
def test_what_other_channels_say_too_is_not_lost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "RIDGE", 1e-7)
    whole, small = doubled(READERS[name](), Tokens() if "tokens" in name else None)
    images, _ = next(iter(NOISE()))
    with torch.no_grad():
        expected = whole(images)
        assert not torch.allclose(small(images), expected, atol=0.02)
        before = copy.deepcopy(whole.state_dict())
        reconstruct(whole, small, GONE, NOISE)
        torch.testing.assert_close(small(images), expected, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in whole.state_dict().items())
    assert torch.equal(small.first.weight, whole.first.weight[:4]), "its own inputs are all there"


def test_a_depthwise_convolution_filters_each_channel_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its channels arrives louder or softer, and one not at all."""
    monkeypatch.setattr(solving, "RIDGE", 1e-7)
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 6, 3, groups=6, padding=1)).eval()
    other = copy.deepcopy(whole)
    images, _ = next(iter(NOISE()))
    with torch.no_grad():
        other[0].weight *= torch.tensor([0.5, 1, 2, 3, 4, 0])[:, None, None, None]
        expected = whole(images)
        last = other[1].weight[5].clone()
        reconstruct(whole, other, {}, NOISE)
        found = other(images)
    torch.testing.assert_close(found[:, :5], expected[:, :5], rtol=1e-3, atol=1e-3)
    assert torch.equal(other[1].weight[5], last), "nothing arrives"


def test_a_ridge_holds_weights_to_the_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "RIDGE", 1e9)
    whole, small = doubled(nn.Conv2d(8, 5, 3))
    old = small.reader.weight.detach().clone()
    reconstruct(whole, small, GONE, NOISE)
    torch.testing.assert_close(small.reader.weight, old, rtol=0, atol=1e-6)


def test_the_mean_of_a_classifier_without_a_bias_is_kept() -> None:
    """The norms of the network correct the means of convolutions, but no norm comes after the classifier."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 3, bias=False)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    whole = nn.Sequential(stem, nn.BatchNorm2d(8), nn.ReLU(), pool, nn.Linear(8, 5, bias=False)).eval()
    other = copy.deepcopy(whole)
    images, _ = next(iter(NOISE()))
    with torch.no_grad():
        other[4].weight[:, 4:] = 0  # as if channels were gone
        mean, before = whole(images).mean(0), other(images).mean(0)
        reconstruct(whole, other, {}, NOISE)
        assert (other(images).mean(0) - mean).norm() < 0.1 * (before - mean).norm()


class Mirror(nn.Module):
    """A second channel: the first one in the left column, and minus it elsewhere; or zeros, as if it were gone."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        other = -self.share * x
        other[..., 0] *= -1
        return Tokens()(torch.cat([x, other], dim=1))  # type: ignore[no-any-return]


def test_tokens_of_all_columns_are_used() -> None:
    """256 images of 16 x 16 tokens are 16 times as many as are used."""
    whole, other = (nn.Sequential(Mirror(share), nn.Linear(2, 1)).eval() for share in (1.0, 0.0))
    images = torch.randn(256, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for net in (whole, other):
            net[1].weight.fill_(1.0)
            net[1].bias.zero_()
    reconstruct(whole, other, {}, lambda: [(images, images)])
    assert abs(other[1].weight[0, 0]) < 0.5, "2 in the left column, 0 elsewhere"


UNTOUCHED = {
    "grouped": lambda: nn.Conv2d(8, 8, 3, groups=2),
    "reflects": lambda: nn.Conv2d(8, 5, 3, padding=1, padding_mode="reflect"),
    "pads by a word": lambda: nn.Conv2d(8, 5, 3, padding="same"),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_layers_that_are_not_solved_stay_as_they_are(name: str) -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), UNTOUCHED[name]()).eval()
    other = copy.deepcopy(whole)
    with torch.no_grad():
        other[0].weight[4:] = 0  # as if channels were gone
    old = other[2].weight.detach().clone()
    reconstruct(whole, other, {}, NOISE)
    assert torch.equal(other[2].weight, old)


def test_a_layer_that_is_too_large_or_used_twice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "_FEATURES", 71)
    whole, small = doubled(nn.Conv2d(8, 5, 3))
    old = small.reader.weight.detach().clone()
    reconstruct(whole, small, GONE, NOISE)
    assert torch.equal(small.reader.weight, old)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.again(self.again(self.first(x)))

    twice = Twice().eval()
    other = copy.deepcopy(twice)
    with torch.no_grad():
        other.first.weight[4:] = 0
    old = other.again.weight.detach().clone()
    reconstruct(twice, other, {}, NOISE)
    assert torch.equal(other.again.weight, old)


def test_statistics_are_moved_and_not_measured(trained: nn.Module, train: Data) -> None:
    """A network that was fine-tuned with frozen statistics depends on them, and they are not those of its data."""
    trained.norm.running_mean += 3
    trained.norm.running_var *= 5
    same = copy.deepcopy(trained)
    reconstruct(trained, same, {}, train.batches())
    torch.testing.assert_close(same.state_dict(), trained.state_dict(), rtol=1e-5, atol=1e-5)
    louder = copy.deepcopy(trained)
    with torch.no_grad():
        louder.stem.weight *= 2
    reconstruct(trained, louder, {}, train.batches(), weights=False)
    images, _ = train.tensors()
    with torch.no_grad():
        mean = trained.stem(images).mean((0, 2, 3))
    torch.testing.assert_close(louder.norm.running_mean, trained.norm.running_mean + mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(louder.norm.running_var, trained.norm.running_var * 4, rtol=1e-2, atol=1e-4)


def test_statistics_recover_accuracy_and_weights_more_of_it(trained: nn.Module, train: Data, selection: Data) -> None:
    pruned = remove_channels(trained, SHAPE, 0.7, batches=train.batches())
    moved = copy.deepcopy(pruned.model)
    reconstruct(trained, moved, pruned.removed, train.batches(), weights=False)
    assert accuracy(moved, selection) > accuracy(pruned.model, selection) + 0.1
    pruned.model.train()
    reconstruct(trained, pruned.model, pruned.removed, train.batches())
    assert pruned.model.training
    assert not trained.training
    assert accuracy(pruned.model.eval(), selection) > accuracy(moved, selection) + 0.02
    assert not any(
        part._forward_hooks or part._forward_pre_hooks for part in (*trained.modules(), *pruned.model.modules())
    )


def test_few_images_and_dead_channels_leave_finite_weights(trained: nn.Module) -> None:
    """One image, and channels whose inputs are all zero."""
    pruned = remove_channels(trained, SHAPE, 0.4, batches=NOISE)

    def one() -> Iterator[tuple[Tensor, Any]]:
        yield torch.zeros(1, *SHAPE), None

    reconstruct(trained, pruned.model, pruned.removed, one)
    assert all(value.isfinite().all() for value in pruned.model.state_dict().values())


@pytest.mark.parametrize("limit", ["_PIXELS", "_VALUES"])
def test_images_are_as_many_as_fit(train: Data, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    seen: list[int] = []
    net = TinyNet().eval()
    largest = net.stem.out_channels if limit == "_VALUES" else 1  # its output is the largest
    monkeypatch.setattr(least_squares, limit, 100 * SHAPE[1] * SHAPE[2] * largest)
    net.stem.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    reconstruct(net, copy.deepcopy(net), {}, train.batches())
    assert seen == [1, 100, 100]  # to see what fits, the original's and the copy's
