"""Channels that the others can stand in for are removed first."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from kitae.compression import least_squares, selection
from kitae.compression.channels import remove_channels
from kitae.compression.reconstruct import reconstruct
from kitae.compression.selection import Reader, removal_errors
from tests.compression.tiny_world import SHAPE, Data, accuracy, noise

NOISE = noise(*SHAPE)


def mixed(kernel: int) -> nn.Sequential:
    """Eight channels, of which the last four are sums of the others, then a convolution that reads them."""
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(first=nn.Conv2d(3, 8, 3, bias=False), reader=nn.Conv2d(8, 5, kernel)))
    with torch.no_grad():
        net.first.weight[4:] = (torch.randn(4, 4) @ net.first.weight[:4].flatten(1)).reshape(4, 3, 3, 3)
    return net.eval()


def features(channels: int, kernel: int) -> Tensor:
    return torch.arange(channels * kernel).reshape(channels, kernel)


def gram_of(net: nn.Sequential, kernel: int) -> Tensor:
    """The covariance of all that a convolution reads, at all positions, but for the number of rows."""
    images, _ = next(iter(NOISE()))
    with torch.no_grad():
        patches = nn.functional.unfold(net.first(images), kernel).transpose(1, 2).flatten(0, 1).double()
    patches = patches - patches.mean(0)
    gram = patches.T @ patches / len(patches)
    return gram + least_squares.RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def left_over(gram: Tensor, weight: Tensor, kept: list[int]) -> float:
    """The least squared error of `weight`'s outputs from these features alone, weights held by the ridge."""
    part = gram[kept][:, kept]
    solved = torch.linalg.solve(part, gram[kept] @ weight.T).T
    return float(((weight @ gram) * weight).sum() - ((solved @ part) * solved).sum())


@pytest.mark.parametrize("kernel", [1, 3])
def test_errors_are_those_of_solving_without_the_channels(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of the removal, computed a second time from the whole covariance."""
    monkeypatch.setattr(least_squares, "_ROWS", (10**6, 10**6))  # all positions
    net = mixed(kernel)
    gram, weight = gram_of(net, kernel), net.reader.weight.detach().flatten(1).double()
    hold = least_squares.RIDGE / (1 + least_squares.RIDGE) * gram.diagonal().mean() * torch.eye(len(gram))
    scale = float(((weight @ (gram - hold)) * weight).sum())
    size = kernel * kernel
    (found,) = removal_errors(net, [[Reader("reader", features(8, size))]], NOISE)

    def without(gone: list[int]) -> float:
        kept = [feature for channel in range(8) if channel not in gone
                for feature in range(channel * size, (channel + 1) * size)]  # fmt: skip
        return left_over(gram, weight, kept) / scale if kept else float(((weight @ gram) * weight).sum()) / scale

    gone: list[int] = []
    for channel in found.argsort().tolist():
        added = {other: without([*gone, other]) - without(gone) for other in range(8) if other not in gone}
        assert added[channel] == pytest.approx(min(added.values()), rel=1e-3, abs=1e-6)
        gone.append(channel)
    first = int(found.argmin())
    assert float(found[first]) == pytest.approx(without([first]), rel=1e-3)


def test_what_the_others_say_too_goes_first_however_large_it_is() -> None:
    net = mixed(1)
    with torch.no_grad():
        net.first.weight[4:] *= 10  # norms call these the most important
        net.reader.weight[:, 4:] *= 10
    (found,) = removal_errors(net, [[Reader("reader", features(8, 1))]], NOISE)
    removed = set(found.argsort()[:4].tolist())
    assert found.sort().values[3] < 0.05 * found.sort().values[4]
    result = remove_channels(net, SHAPE, {"first": 0.5}, batches=NOISE, importance="reconstruction")
    assert set(result.removed["first"]) == removed
    images, _ = next(iter(NOISE()))
    with torch.no_grad():
        expected = net(images)
        reconstruct(net, result.model, result.removed, NOISE)
        assert (result.model(images) - expected).norm() < 0.1 * expected.norm()


class Branches(nn.Module):
    """Two layers that read the same channels; the second is louder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.left, self.right = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)
        with torch.no_grad():
            self.left.weight[:, :4] = 0
            self.right.weight[:, 4:] = 0
            self.right.weight *= 1000

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.cat([self.left(x), self.right(x)], 1).mean((2, 3))  # type: ignore[no-any-return]


def test_readers_count_equally_and_errors_add_up() -> None:
    net = Branches().eval()
    readers = [Reader(name, features(8, 1)) for name in ("left", "right")]
    left, right, both = removal_errors(net, [readers[:1], readers[1:], readers], NOISE)
    assert both.sum() < 3, "shares of each layer's variance"
    assert int(both.argmax()) in (int(left.argmax()), int(right.argmax()))
    assert {int(left.argmin()) < 4, int(right.argmin()) >= 4} == {True}, "each can do without what it does not read"
    result = remove_channels(net, SHAPE, {"first": 0.25}, batches=NOISE, importance="reconstruction")
    assert set(result.removed["first"]) == set(both.argsort()[:2].tolist())


def test_a_flattened_channel_is_several_features(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[list[Reader]]] = []
    real = selection.removal_errors

    def noted(model: nn.Module, groups: list[list[Reader]], batches: object) -> list[Tensor]:
        seen.append(groups)
        return real(model, groups, batches)  # type: ignore[arg-type]

    monkeypatch.setattr("kitae.compression.channels.removal_errors", noted)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)).eval()
    remove_channels(net, SHAPE, 0.5, batches=NOISE, importance="reconstruction")
    (((reader,),),) = seen
    assert reader.name == "3"
    assert torch.equal(reader.features, torch.arange(32).reshape(8, 4))


def test_layers_that_cannot_be_solved_are_ranked_by_norm() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, padding_mode="reflect", padding=1)).eval()
    by_norm = remove_channels(net, SHAPE, 0.5, batches=NOISE, importance="group")
    result = remove_channels(net, SHAPE, 0.5, batches=NOISE, importance="reconstruction")
    assert result.removed == by_norm.removed


def test_it_loses_less_than_norms_do(trained: nn.Module, train: Data, selection: Data) -> None:
    def after(importance: str) -> float:
        pruned = remove_channels(trained, SHAPE, 0.75, batches=train.batches(), importance=importance)
        reconstruct(trained, pruned.model, pruned.removed, train.batches())
        return accuracy(pruned.model, selection)

    assert after("reconstruction") > after("group")
