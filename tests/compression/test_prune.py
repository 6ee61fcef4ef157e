from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

from kitae.compression import prune
from kitae.compression.prune import (
    Gradual,
    Shape,
    apply_masks,
    compressed_bytes,
    count,
    cubic,
    enforce,
    magnitude_masks,
    masked_original,
    reestimate_batchnorm,
    remove_channels,
    reshape,
)
from kitae.errors import CompressionError
from kitae.models.build import build
from kitae.models.spec import ModelSpec
from tests.compression.tiny_world import SHAPE, Data, TinyNet, accuracy, fit


def kitae_net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(ModelSpec(name=name), classes=10, channels=3, image_size=32).eval()


class TestUnstructured:
    def test_the_arithmetic_of_the_specification(self) -> None:
        """20 % of conv1 and 30 % of fc1 of simple_cnn is 157,459 zeros, a sparsity of 28.89 %."""
        net = kitae_net("simple_cnn")
        apply_masks(net, magnitude_masks(net, {"conv1": 0.2, "fc1": 0.3}))
        counts = count(net)
        assert counts.parameters == 545_098
        assert counts.zeros == 157_459
        assert counts.nonzero == 545_098 - 157_459
        assert round(100 * counts.sparsity, 2) == 28.89
        by_name = {layer.name: layer for layer in counts.layers}
        assert by_name["conv1"].zeros == 173
        assert by_name["conv2"].zeros == 0
        assert by_name["fc1"].sparsity == pytest.approx(0.3, abs=1e-5)

    def test_the_smallest_go(self) -> None:
        net = TinyNet()
        before = net.conv1.weight.detach().clone()
        mask = magnitude_masks(net, {"conv1": 0.25})["conv1"]
        assert before[~mask].abs().max() <= before[mask].abs().min()
        assert int((~mask).sum()) == round(0.25 * before.numel())

    def test_ties_still_give_the_exact_number(self) -> None:
        net = TinyNet()
        nn.init.constant_(net.conv1.weight, 0.5)
        assert int((~magnitude_masks(net, {"conv1": 0.3})["conv1"]).sum()) == round(0.3 * net.conv1.weight.numel())

    def test_global_ranks_all_layers_together_and_empties_none(self) -> None:
        net = TinyNet()
        with torch.no_grad():
            net.conv1.weight *= 1e-4  # all of it is smaller than anything else
        masks = magnitude_masks(net, 0.4, scope="global")
        total = sum(mask.numel() for mask in masks.values())
        assert sum(int((~mask).sum()) for mask in masks.values()) == round(0.4 * total)
        share = float(masks["conv1"].float().mean())
        assert 0.1 <= share < 0.101
        layer = magnitude_masks(net, 0.4, scope="layer")
        assert float(layer["conv1"].float().mean()) == pytest.approx(0.6, abs=1e-3)

    def test_skip(self) -> None:
        assert "classifier" not in magnitude_masks(TinyNet(), 0.5, skip=["classifier"])

    def test_zeros_hold_through_training_with_momentum(self, trained: nn.Module, train: Data) -> None:
        masks = magnitude_masks(trained, 0.5)
        apply_masks(trained, masks)
        zeros = count(trained).zeros
        free = fit(copy.deepcopy(trained), train, 1)
        assert count(free).zeros < zeros / 10, "without enforcing, training revives them: the test can fail"
        seen: list[int] = []

        def after_step(model: nn.Module) -> None:
            enforce(masks)(model)
            seen.append(count(model).zeros)

        held = fit(trained, train, 1, after_step=after_step)
        assert set(seen) == {zeros}
        reloaded = TinyNet()
        reloaded.load_state_dict(held.state_dict())
        assert count(reloaded).zeros == zeros

    def test_counting_sees_effective_weights(self) -> None:
        net = TinyNet()
        plain = count(net)
        torch.nn.utils.prune.l1_unstructured(net.conv1, "weight", amount=0.5)
        nn.utils.parametrizations.weight_norm(net.point)
        assert sum(int((p == 0).sum()) for p in net.conv1.parameters()) == 0, "the naive count reads zero"
        counts = count(net)
        assert counts.parameters == plain.parameters
        assert counts.zeros == round(0.5 * net.conv1.weight.numel())

    def test_zeros_are_worth_compressed_bytes(self) -> None:
        net = kitae_net("simple_cnn")
        before = compressed_bytes(net)
        apply_masks(net, magnitude_masks(net, 0.8))
        assert compressed_bytes(net) < 0.4 * before

    def test_the_cubic_schedule(self) -> None:
        assert cubic(0, 10, 0.8) == 0.0
        assert cubic(5, 10, 0.8) == pytest.approx(0.8 - 0.8 * 0.125)
        assert cubic(10, 10, 0.8) == cubic(99, 10, 0.8) == 0.8
        assert cubic(2, 4, 0.9, initial=0.5) == pytest.approx(0.9 - 0.4 * 0.125)

    def test_gradual_pruning_rises_and_never_revives(self, trained: nn.Module, train: Data) -> None:
        steps = 2 * 12
        gradual = Gradual(0.6, steps, every=4)
        history: list[dict[str, Tensor]] = []

        def after_step(model: nn.Module) -> None:
            gradual(model)
            history.append({name: m.weight == 0 for name, m in prune.prunable_layers(model).items()})  # type: ignore[union-attr]

        fit(trained, train, 3, after_step=after_step)
        zeros = [sum(int(z.sum()) for z in step.values()) for step in history]
        assert zeros[2] == 0
        assert 0 < zeros[3] < zeros[7] < zeros[steps - 1] == zeros[-1]
        for earlier, later in itertools.pairwise(history):
            assert all(bool((later[name] >= earlier[name]).all()) for name in earlier)
        assert zeros[-1] == sum(round(0.6 * layer.weights) for layer in count(trained).layers)

    def test_gradual_pruning_holds_what_was_dropped_before(self, trained: nn.Module, train: Data) -> None:
        masks = magnitude_masks(trained, 0.3)
        apply_masks(trained, masks)
        gradual = Gradual(0.6, 24, every=8, initial=0.3, masks=masks)
        revived: list[int] = []

        def after_step(model: nn.Module) -> None:
            gradual(model)
            layers = prune.prunable_layers(model)
            revived.append(sum(int((layers[name].weight[~mask] != 0).sum()) for name, mask in masks.items()))  # type: ignore[index]

        fit(trained, train, 2, after_step=after_step)
        assert not any(revived)

    @pytest.mark.parametrize(
        ("ratios", "options", "message"),
        [
            ({"nowhere": 0.5}, {}, "no layer 'nowhere'"),
            ({"conv1": 1.0}, {}, r"in \[0, 1\), not 1.0"),
            (-0.1, {}, r"in \[0, 1\)"),
            ({"conv1": 0.5}, {"scope": "global"}, "takes one ratio"),
            (0.5, {"skip": ["nope"]}, "no layer 'nope'"),
        ],
    )
    def test_what_cannot_be_done_is_said(self, ratios: object, options: dict[str, object], message: str) -> None:
        with pytest.raises(CompressionError, match=message):
            magnitude_masks(TinyNet(), ratios, **options)  # type: ignore[arg-type]

    def test_masks_of_another_network(self) -> None:
        with pytest.raises(CompressionError, match="does not have"):
            apply_masks(TinyNet(), {"elsewhere": torch.ones(1, dtype=torch.bool)})
        with pytest.raises(CompressionError, match="mask of conv1"):
            apply_masks(TinyNet(), magnitude_masks(TinyNet(width=8), {"conv1": 0.5}))


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


IMPORTANCES = ["magnitude", "group", "taylor", "random"]


class TestStructured:
    @pytest.mark.parametrize("importance", IMPORTANCES)
    @pytest.mark.parametrize("scope", ["layer", "global"])
    def test_the_smaller_network_equals_the_masked_original(
        self, trained: nn.Module, train: Data, importance, scope
    ) -> None:
        before = copy.deepcopy(trained.state_dict())
        result = remove_channels(
            trained, SHAPE, 0.4, importance=importance, scope=scope, batches=train.batches(), seed=3
        )
        assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
        assert count(result.model).parameters < 0.75 * count(trained).parameters
        images, _ = train.tensors()
        with torch.no_grad():
            expected = masked_original(trained, result.removed)(images)
            torch.testing.assert_close(result.model(images), expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(trained(images), expected, atol=1e-2), "the removed channels did something"

    def test_norms_gates_and_inputs_that_are_not_read(self) -> None:
        """A LayerNorm over the channels, and an activation that does not map zero to zero."""
        torch.manual_seed(0)
        net = Gated().eval()
        net.norm.weight.data.uniform_(0.5, 2)
        net.norm.bias.data.normal_()
        result = remove_channels(net, SHAPE, 0.4)
        assert {"stem", "norm", "wide"} <= set(result.removed)
        assert result.removed_inputs["head"] == result.removed["wide"]
        assert result.masked_error < 1e-5
        images = torch.randn(4, *SHAPE)
        with torch.no_grad():
            masked = masked_original(net, result.removed, result.removed_inputs)(images)
            torch.testing.assert_close(result.model(images), masked, rtol=1e-4, atol=1e-5)
            # What the comparison would say without either.
            assert not torch.allclose(masked_original(net, result.removed)(images), masked, atol=1e-3)

    def test_channels_that_are_mixed_where_no_layer_shows_it(self) -> None:
        torch.manual_seed(0)
        with pytest.raises(CompressionError, match="something else than with zeros in their place"):
            remove_channels(Gated(mixes=True).eval(), SHAPE, 0.4)

    def test_a_channel_cut_out_of_the_wrong_place_is_refused(
        self, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        honest = prune._Group.prune

        def another(self: Any, channels: list[int]) -> Iterator[tuple[str, bool, int, list[int]]]:
            for name, output, width, positions in honest(self, channels):
                yield name, output, width, [(i + 1) % width for i in positions]

        monkeypatch.setattr(prune._Group, "prune", another)
        with pytest.raises(CompressionError, match="something else than with zeros in their place"):
            remove_channels(trained, SHAPE, 0.4)

    def test_a_wrong_channel_would_be_noticed(self, trained: nn.Module, train: Data) -> None:
        result = remove_channels(trained, SHAPE, 0.4)
        shifted = {name: [(i + 1) % 12 for i in gone] for name, gone in result.removed.items() if name != "point"}
        images, _ = train.tensors()
        with torch.no_grad():
            difference = (masked_original(trained, shifted)(images) - result.model(images)).abs().max()
        assert difference > 0.1

    @pytest.mark.parametrize("name", ["resnet8", "simple_cnn", "resnet9"])
    def test_rebuilt_from_configuration_and_weights(self, name: str) -> None:
        net = kitae_net(name)
        result = remove_channels(net, (3, 32, 32), 0.5)
        shape = Shape.from_dict(json.loads(json.dumps(result.shape.to_dict())))
        assert shape == result.shape
        rebuilt = reshape(kitae_net(name), shape)
        rebuilt.load_state_dict(result.model.state_dict())
        x = torch.randn(4, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(rebuilt(x), result.model(x))
            masked = masked_original(net, result.removed)(x)
            torch.testing.assert_close(result.model(x), masked, rtol=1e-3, atol=1e-4)
        assert rebuilt.classifier.out_features == 10
        for module in rebuilt.modules():
            if isinstance(module, nn.Conv2d):
                assert module.weight.shape[0] == module.out_channels
                assert module.weight.shape[1] == module.in_channels // module.groups

    def test_ratios_by_layer_and_coupling(self, trained: nn.Module) -> None:
        result = remove_channels(trained, SHAPE, {"conv1": 0.5})
        assert set(result.removed) == {"conv1", "norm1"}
        assert result.shape.kept["conv1"] == tuple(i for i in range(12) if i not in result.removed["conv1"])
        assert result.shape.attributes["conv2"] == {"in_channels": 6}
        coupled = remove_channels(trained, SHAPE, {"stem": 0.25})
        assert {"stem", "norm", "conv2", "norm2", "depthwise", "norm3"} <= set(coupled.removed)
        assert coupled.removed["stem"] == coupled.removed["conv2"] == coupled.removed["depthwise"]

    def test_the_least_important_go(self, trained: nn.Module) -> None:
        trained.conv1.weight.data[[2, 7]] *= 1e-3
        trained.conv2.weight.data[:, [2, 7]] *= 1e-3
        trained.norm1.weight.data[[2, 7]] *= 1e-3
        for importance in ("magnitude", "group"):
            result = remove_channels(trained, SHAPE, {"conv1": 2 / 12}, importance=importance)
            assert result.removed["conv1"] == (2, 7)

    def test_taylor_finds_the_channels_that_do_not_matter(self, trained: nn.Module, train: Data) -> None:
        """Large weights into a channel that the next layer ignores: magnitude keeps it, the loss does not miss it."""
        trained.conv1.weight.data[5] *= 10
        trained.conv2.weight.data[:, 5] = 0
        taylor = remove_channels(trained, SHAPE, {"conv1": 1 / 12}, importance="taylor", batches=train.batches())
        assert taylor.removed["conv1"] == (5,)
        assert remove_channels(trained, SHAPE, {"conv1": 1 / 12}, importance="magnitude").removed["conv1"] != (5,)

    def test_random_is_worse_than_importance(self, trained: nn.Module, selection: Data, train: Data) -> None:
        """The negative control: at the same shape, chance loses more than the criterion does."""

        def after(importance: str, seed: int = 0) -> float:
            result = remove_channels(
                trained, SHAPE, {"conv1": 0.5, "point": 0.5}, importance=importance, batches=train.batches(), seed=seed
            )
            reestimate_batchnorm(result.model, train.batches())
            return accuracy(result.model, selection)

        chance = sum(after("random", seed) for seed in range(5)) / 5
        assert after("taylor") > chance + 0.02
        assert after("random", 1) == after("random", 1)

    def test_outputs_and_skipped_layers_stay(self, trained: nn.Module) -> None:
        result = remove_channels(trained, SHAPE, 0.5, skip=["conv1"])
        assert "classifier" not in result.removed
        assert "conv1" not in result.removed
        assert result.model.classifier.out_features == 4
        whole = remove_channels(trained, SHAPE, 0.5, skip=["conv2"])
        assert "stem" not in whole.removed, "coupled to a skipped layer"

    def test_no_layer_collapses(self, trained: nn.Module) -> None:
        with torch.no_grad():
            trained.point.weight *= 1e-6
        for scope in ("layer", "global"):
            result = remove_channels(trained, SHAPE, 0.95, scope=scope, importance="magnitude")
            tenth = {"conv1": 2, "point": 3}  # of 12 and 24 channels, rounded up
            for name, fewest in tenth.items():
                left = result.model.get_submodule(name).out_channels
                assert left == fewest if scope == "layer" else left >= fewest

    def test_round_to(self, trained: nn.Module) -> None:
        result = remove_channels(trained, SHAPE, 0.4, round_to=6)
        assert result.model.point.out_channels == 12, "24 would keep 14, and 12 is the nearest multiple"
        assert result.model.conv1.out_channels == 6, "12 would keep 7, and 6 is the nearest multiple"
        result = remove_channels(trained, SHAPE, 0.4, round_to=16)
        assert result.model.point.out_channels == 16, "24 are not twice 16, so a multiple of 8"
        assert result.model.conv1.out_channels == 8, "nor 12 twice 8, so a multiple of 4"

    def test_grouped_convolutions_are_left_whole(self) -> None:
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )  # fmt: skip
        result = remove_channels(net, SHAPE, 0.5)
        assert set(result.removed) == {"4"}

    def test_a_frozen_network_keeps_its_flags_and_mode(self, trained: nn.Module) -> None:
        trained.requires_grad_(False)
        trained.classifier.requires_grad_(True)
        trained.train()
        trained.norm1.eval()
        smaller = remove_channels(trained, SHAPE, 0.5).model
        assert [n for n, p in smaller.named_parameters() if p.requires_grad] == ["classifier.weight", "classifier.bias"]
        assert smaller.training
        assert not smaller.norm1.training

    def test_reshaping_a_fresh_network_trains_from_scratch(self, trained: nn.Module, train: Data) -> None:
        shape = remove_channels(trained, SHAPE, 0.5).shape
        torch.manual_seed(5)
        fresh = reshape(TinyNet(), shape)
        assert accuracy(fit(fresh, train, 6), train) > 0.6, "chance is 0.25"

    def test_a_shape_of_another_network(self) -> None:
        shape = remove_channels(kitae_net("resnet8"), (3, 32, 32), 0.5).shape
        with pytest.raises(CompressionError, match="does not fit this network"):
            reshape(TinyNet(), shape)
        with pytest.raises(CompressionError, match="damaged"):
            Shape.from_dict({"tensors": {"a": "b"}})
        with pytest.raises(CompressionError, match=r"names stem\.forward"):
            reshape(TinyNet(), Shape(attributes={"stem": {"forward": 1}}))

    def test_what_cannot_be_done_is_said(self, trained: nn.Module) -> None:
        with pytest.raises(CompressionError, match="needs batches"):
            remove_channels(trained, SHAPE, 0.5, importance="taylor")
        with pytest.raises(CompressionError, match="needs batches"):
            remove_channels(trained, SHAPE, 0.5, importance="taylor", batches=list)
        with pytest.raises(CompressionError, match="importance must be"):
            remove_channels(trained, SHAPE, 0.5, importance="size")  # type: ignore[arg-type]
        with pytest.raises(CompressionError, match="no layer of this network can lose"):
            remove_channels(nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 4)), SHAPE, 0.5)

    def test_a_network_that_cuts_its_own_channels(self) -> None:
        class Cuts(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 8, 3)
                self.next = nn.Conv2d(8, 4, 1)

            def forward(self, x: Tensor) -> Tensor:
                x = self.conv(x)
                return self.next(x.reshape(len(x), 8, -1, 1)).mean((2, 3))

        with pytest.raises(CompressionError, match="cuts or reshapes channels in its own code"):
            remove_channels(Cuts(), SHAPE, 0.5)


class TestBatchNorm:
    def test_statistics_are_those_of_the_images(self, train: Data) -> None:
        net = TinyNet().eval()
        net.norm.running_mean.fill_(9)
        assert reestimate_batchnorm(net, train.batches(768)) == 4
        images, _ = train.tensors()
        with torch.no_grad():
            features = net.stem(images)
        torch.testing.assert_close(net.norm.running_mean, features.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net.norm.running_var, features.var((0, 2, 3)), rtol=1e-3, atol=1e-5)
        assert net.norm.momentum == 0.1
        assert not net.training
        assert not net.norm.training

    def test_it_recovers_accuracy_after_pruning(self, trained: nn.Module, train: Data, selection: Data) -> None:
        pruned = remove_channels(trained, SHAPE, 0.4, importance="taylor", batches=train.batches()).model
        before = accuracy(pruned, selection)
        reestimate_batchnorm(pruned, train.batches())
        assert accuracy(pruned, selection) > before

    def test_without_images_or_norms(self) -> None:
        assert reestimate_batchnorm(nn.Linear(2, 2), list) == 0
        with pytest.raises(CompressionError, match="no training images"):
            reestimate_batchnorm(TinyNet(), list)
