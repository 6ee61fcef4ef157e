from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kitae.compression import channels
from kitae.compression.channels import masked_original, remove_channels
from kitae.compression.counting import count
from kitae.compression.reconstruct import reconstruct
from kitae.compression.shape import reshape
from kitae.errors import CompressionError
from tests.compression.tiny_world import SHAPE, Data, TinyNet, accuracy, noise
from tests.refusals import refused

NOISE = noise(*SHAPE)


class Gated(nn.Module):
    """A convolution, a LayerNorm over its channels, and a gate that is a half at zero; `mixes` adds the channels' mean
    in the network's own code."""

    def __init__(self, mixes: bool = False) -> None:
        super().__init__()
        self.stem, self.norm, self.mixes = nn.Conv2d(3, 12, 3, padding=1), nn.LayerNorm(12), mixes
        self.wide, self.head = nn.Linear(12, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).mean(dim=(2, 3)))
        if self.mixes:
            x = x / x.abs().mean(dim=1, keepdim=True)
        outputs: Tensor = self.head(self.wide(x).sigmoid())
        return outputs


IMPORTANCES = ["reconstruction", "magnitude", "group", "taylor", "random"]


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_smaller_network_equals_the_masked_original(trained: nn.Module, train: Data, importance, scope) -> None:
    before = copy.deepcopy(trained.state_dict())
    result = remove_channels(trained, SHAPE, 0.4, importance=importance, scope=scope, batches=train.batches(), seed=3)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    left = sum(result.model.get_submodule(name).out_channels for name in ("stem", "conv1", "point"))
    assert left == pytest.approx(0.6 * (12 + 12 + 24), abs=1)
    if (importance, scope) != ("reconstruction", "global"):  # that removes channels that few weights touch
        assert count(result.model).parameters < 0.75 * count(trained).parameters
    images, _ = train.tensors()
    with torch.no_grad():
        expected = masked_original(trained, result.removed)(images)
        torch.testing.assert_close(result.model(images), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(trained(images), expected, atol=1e-2), "the removed channels did something"


def test_norms_gates_and_inputs_that_are_not_read() -> None:
    """A LayerNorm over the channels, and an activation that does not map zero to zero."""
    torch.manual_seed(0)
    net = Gated().eval()
    net.norm.weight.data.uniform_(0.5, 2)
    net.norm.bias.data.normal_()
    result = remove_channels(net, SHAPE, 0.4, batches=NOISE)
    assert {"stem", "norm", "wide"} <= set(result.removed)
    assert result.removed_inputs["head"] == result.removed["wide"]
    assert result.masked_error < 1e-5
    images = torch.randn(4, *SHAPE)
    with torch.no_grad():
        masked = masked_original(net, result.removed, result.removed_inputs)(images)
        torch.testing.assert_close(result.model(images), masked, rtol=1e-4, atol=1e-5)
        # What the comparison would say without either.
        assert not torch.allclose(masked_original(net, result.removed)(images), masked, atol=1e-3)


class Cuts(nn.Module):
    """Reshapes channels in its own code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.next = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.next(x.reshape(len(x), 8, -1, 1)).mean((2, 3))


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 4))


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (flat, {}, "no layer of this network can lose"),
        (Cuts, {}, r"in their place \(.*\): it mixes channels in its own code"),
        (partial(Gated, mixes=True), {}, "something else than with zeros in their place"),
        (grouped, {"required": ["4", "0"]}, "layer_ratios: '0' cannot lose channels"),
        # coupled to a skipped one
        (TinyNet, {"skip": ["conv2"], "required": ["conv1", "stem"]}, "layer_ratios: 'stem' cannot lose channels"),
    ],
)
def test_what_cannot_be_removed_is_said(model: Callable[[], nn.Module], options: dict[str, Any], words: str) -> None:
    torch.manual_seed(0)
    refused(CompressionError, words, remove_channels, model().eval(), SHAPE, 0.4, batches=NOISE, **options)


def test_a_channel_cut_out_of_the_wrong_place_is_refused(trained: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = channels._Group.prune

    def another(self: Any, channels: list[int]) -> Iterator[tuple[str, bool, int, list[int]]]:
        for name, output, width, positions in honest(self, channels):
            yield name, output, width, [(i + 1) % width for i in positions]

    monkeypatch.setattr(channels._Group, "prune", another)
    words = "something else than with zeros in their place"
    refused(CompressionError, words, remove_channels, trained, SHAPE, 0.4, batches=NOISE)


def test_networks_are_compared_in_float32_on_a_gpu_too() -> None:
    """In TF32, two networks that compute the same may be further apart than rounding is thought to bring them."""

    class Recorder(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.conv.fp32_precision)
            return x

    seen: list[str] = []
    before = torch.backends.cudnn.conv.fp32_precision
    assert channels._distance(Recorder(), Recorder(), torch.ones(1, 2)) == 0
    assert seen == ["ieee", "ieee"]
    assert torch.backends.cudnn.conv.fp32_precision == before != "ieee"


def test_ratios_by_layer_and_coupling(trained: nn.Module) -> None:
    result = remove_channels(trained, SHAPE, {"conv1": 0.5}, batches=NOISE)
    assert set(result.removed) == {"conv1", "norm1"}
    assert result.shape.kept["conv1"] == tuple(i for i in range(12) if i not in result.removed["conv1"])
    assert result.shape.attributes["conv2"] == {"in_channels": 6}
    coupled = remove_channels(trained, SHAPE, {"stem": 0.25}, batches=NOISE)
    assert {"stem", "norm", "conv2", "norm2", "depthwise", "norm3"} <= set(coupled.removed)
    assert coupled.removed["stem"] == coupled.removed["conv2"] == coupled.removed["depthwise"]


def test_the_least_important_go(trained: nn.Module) -> None:
    trained.conv1.weight.data[[2, 7]] *= 1e-3
    trained.conv2.weight.data[:, [2, 7]] *= 1e-3
    trained.norm1.weight.data[[2, 7]] *= 1e-3
    for importance in ("magnitude", "group"):
        result = remove_channels(trained, SHAPE, {"conv1": 2 / 12}, batches=NOISE, importance=importance)
        assert result.removed["conv1"] == (2, 7)


def test_taylor_finds_the_channels_that_do_not_matter(trained: nn.Module, train: Data) -> None:
    """Large weights into a channel that the next layer ignores: magnitude keeps it, the loss does not miss it."""
    trained.conv1.weight.data[5] *= 10
    trained.conv2.weight.data[:, 5] = 0
    taylor = remove_channels(trained, SHAPE, {"conv1": 1 / 12}, importance="taylor", batches=train.batches())
    assert taylor.removed["conv1"] == (5,)
    magnitude = remove_channels(trained, SHAPE, {"conv1": 1 / 12}, importance="magnitude", batches=train.batches())
    assert magnitude.removed["conv1"] != (5,)


def test_random_is_worse_than_importance(trained: nn.Module, selection: Data, train: Data) -> None:
    """The negative control: at the same shape, chance loses more than the criterion does."""

    def after(importance: str, seed: int = 0) -> float:
        result = remove_channels(
            trained, SHAPE, {"conv1": 0.5, "point": 0.5}, importance=importance, batches=train.batches(), seed=seed
        )
        reconstruct(trained, result.model, result.removed, train.batches(), weights=False)
        return accuracy(result.model, selection)

    chance = sum(after("random", seed) for seed in range(5)) / 5
    assert after("taylor") > chance + 0.02
    assert after("random", 1) == after("random", 1)


def test_outputs_and_skipped_layers_stay(trained: nn.Module) -> None:
    result = remove_channels(trained, SHAPE, 0.5, skip=["conv1"], batches=NOISE)
    assert "classifier" not in result.removed
    assert "conv1" not in result.removed
    assert result.model.classifier.out_features == 4
    whole = remove_channels(trained, SHAPE, 0.5, skip=["conv2"], batches=NOISE)
    assert "stem" not in whole.removed, "coupled to a skipped layer"


def test_no_layer_collapses(trained: nn.Module) -> None:
    with torch.no_grad():
        trained.point.weight *= 1e-6
    for scope in ("layer", "global"):
        result = remove_channels(trained, SHAPE, 0.95, batches=NOISE, scope=scope, importance="magnitude")
        tenth = {"conv1": 2, "point": 3}  # of 12 and 24 channels, rounded up
        for name, fewest in tenth.items():
            left = result.model.get_submodule(name).out_channels
            assert left == fewest if scope == "layer" else left >= fewest


@pytest.mark.parametrize(("round_to", "fewest"), [(1, 4), (16, 16)])
def test_ranked_together_step_by_step_layers_keep_a_tenth_and_packs_of_the_original(round_to: int, fewest: int) -> None:
    torch.manual_seed(0)
    net = TinyNet(width=40).eval()
    with torch.no_grad():
        net.conv1.weight[1:] *= 1e-3  # all but one channel of 40 come first
    widths = {name: layer.out_channels for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}
    for ratio in (0.3, 0.5):
        net = remove_channels(
            net, SHAPE, ratio, scope="global", importance="magnitude", round_to=round_to, widths=widths, batches=NOISE
        ).model
        assert net.conv1.out_channels == fewest, ratio
    left = [net.get_submodule(name).out_channels for name in ("stem", "conv1", "point")]
    assert round_to > 1 or sum(left) == 80, "half of 40 + 40 + 80"


def test_round_to(trained: nn.Module) -> None:
    result = remove_channels(trained, SHAPE, 0.4, round_to=6, batches=NOISE)
    assert result.model.point.out_channels == 12, "24 would keep 14, and 12 is the nearest multiple"
    assert result.model.conv1.out_channels == 6, "12 would keep 7, and 6 is the nearest multiple"
    result = remove_channels(trained, SHAPE, 0.4, round_to=16, batches=NOISE)
    assert result.model.point.out_channels == 16, "24 are not twice 16, so a multiple of 8"
    assert result.model.conv1.out_channels == 8, "nor 12 twice 8, so a multiple of 4"


def test_with_ratio_0_a_layer_stays_whole_though_it_is_no_whole_packs() -> None:
    result = remove_channels(TinyNet(width=18), SHAPE, {"stem": 0.0, "conv1": 0.4}, round_to=16, batches=NOISE)
    assert set(result.removed) == {"conv1", "norm1"}
    assert result.model.conv1.out_channels == 8


@pytest.mark.parametrize("importance", ["reconstruction", "magnitude", "group", "taylor"])
def test_transposed_convolutions(train: Data, importance: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.Sigmoid(),  # an activation that does not map zero to zero
        nn.ConvTranspose2d(8, 12, 2, stride=2), nn.BatchNorm2d(12), nn.ReLU(),
        nn.ConvTranspose2d(12, 12, 3, groups=12), nn.ReLU(), nn.ConvTranspose2d(12, 6, 1, bias=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).eval()  # fmt: skip
    net[2].weight.data[:, 7] *= 1e-3  # output 7, not input 7
    result = remove_channels(net, SHAPE, 0.25, importance=importance, batches=train.batches())
    assert {name: len(these) for name, these in result.removed.items()} == {"0": 2, "2": 3, "3": 3, "5": 3, "7": 2}
    assert result.removed_inputs == {"2": result.removed["0"], "7": result.removed["5"], "10": result.removed["7"]}
    assert importance != "magnitude" or 7 in result.removed["2"]
    assert result.masked_error < 1e-5
    images, _ = train.tensors()
    masked = masked_original(net, result.removed, result.removed_inputs)
    with torch.no_grad():
        torch.testing.assert_close(result.model(images), masked(images), rtol=1e-4, atol=1e-5)
    assert masked[2].weight.any(dim=(0, 2, 3)).logical_not().nonzero().flatten().tolist() == list(result.removed["2"])
    fresh = reshape(copy.deepcopy(net), result.shape)
    fresh.load_state_dict(result.model.state_dict())
    torch.testing.assert_close(fresh(images), result.model(images))


def test_grouped_convolutions_are_left_whole() -> None:
    assert set(remove_channels(grouped(), SHAPE, 0.5, batches=NOISE).removed) == {"4"}


def test_a_frozen_network_keeps_its_flags(trained: nn.Module) -> None:
    trained.requires_grad_(False)
    trained.classifier.requires_grad_(True)
    smaller = remove_channels(trained, SHAPE, 0.5, batches=NOISE).model
    assert [n for n, p in smaller.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]
