from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from kitae.compression.counting import count, prunable_layers
from kitae.compression.masks import Gradual, apply_masks, cubic, magnitude_masks
from tests.compression.tiny_world import Data, TinyNet, fit, kitae_net


def test_the_arithmetic_of_the_specification() -> None:
    """20 % of conv1 and 30 % of fc1 of simple_cnn is 157,459 zeros, a sparsity of 28.89 %."""
    net = kitae_net("simple_cnn")
    apply_masks(net, magnitude_masks(net, {"conv1": 0.2, "fc1": 0.3}))
    counts = count(net)
    assert counts.parameters == 545_098
    assert counts.zeros == 157_459
    assert counts.nonzero == 545_098 - 157_459
    assert round(100 * counts.sparsity, 2) == 28.89
    zeros = {name: int((layer.weight == 0).sum()) for name, layer in prunable_layers(net).items()}  # type: ignore[union-attr]
    assert (zeros["conv1"], zeros["conv2"], zeros["fc1"]) == (173, 0, 157_459 - 173)


def test_the_smallest_go() -> None:
    net = TinyNet()
    before = net.conv1.weight.detach().clone()
    mask = magnitude_masks(net, {"conv1": 0.25})["conv1"]
    assert before[~mask].abs().max() <= before[mask].abs().min()
    assert int((~mask).sum()) == round(0.25 * before.numel())


def test_ties_still_give_the_exact_number() -> None:
    net = TinyNet()
    nn.init.constant_(net.conv1.weight, 0.5)
    assert int((~magnitude_masks(net, {"conv1": 0.3})["conv1"]).sum()) == round(0.3 * net.conv1.weight.numel())


def test_global_ranks_all_layers_together_and_empties_none() -> None:
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


def test_skip() -> None:
    assert "classifier" not in magnitude_masks(TinyNet(), 0.5, skip=["classifier"])


def test_zeros_hold_through_training_with_momentum(trained: nn.Module, train: Data) -> None:
    masks = magnitude_masks(trained, 0.5)
    apply_masks(trained, masks)
    zeros = count(trained).zeros
    free = fit(copy.deepcopy(trained), train, 1)
    assert count(free).zeros < zeros / 10, "without enforcing, training revives them: the test can fail"
    seen: list[int] = []

    def after_step(model: nn.Module) -> None:
        apply_masks(model, masks)
        seen.append(count(model).zeros)

    held = fit(trained, train, 1, after_step=after_step)
    assert set(seen) == {zeros}
    reloaded = TinyNet()
    reloaded.load_state_dict(held.state_dict())
    assert count(reloaded).zeros == zeros


def test_the_cubic_schedule() -> None:
    assert cubic(0, 10, 0.8) == 0.0
    assert cubic(5, 10, 0.8) == pytest.approx(0.8 - 0.8 * 0.125)
    assert cubic(10, 10, 0.8) == cubic(99, 10, 0.8) == 0.8
    assert cubic(2, 4, 0.9, initial=0.5) == pytest.approx(0.9 - 0.4 * 0.125)


def test_gradual_pruning_rises_and_never_revives(trained: nn.Module, train: Data) -> None:
    steps = 2 * 12
    gradual = Gradual(0.6, steps, every=4)
    history: list[dict[str, Tensor]] = []

    def after_step(model: nn.Module) -> None:
        gradual(model)
        history.append({name: m.weight == 0 for name, m in prunable_layers(model).items()})  # type: ignore[union-attr]

    fit(trained, train, 3, after_step=after_step)
    zeros = [sum(int(z.sum()) for z in step.values()) for step in history]
    assert zeros[2] == 0
    assert 0 < zeros[3] < zeros[7] < zeros[steps - 1] == zeros[-1]
    for earlier, later in itertools.pairwise(history):
        assert all(bool((later[name] >= earlier[name]).all()) for name in earlier)
    assert zeros[-1] == sum(round(0.6 * zero.numel()) for zero in history[-1].values())


def test_gradual_pruning_holds_what_was_dropped_before(trained: nn.Module, train: Data) -> None:
    masks = magnitude_masks(trained, 0.3)
    apply_masks(trained, masks)
    gradual = Gradual(0.6, 24, every=8, initial=0.3, masks=masks)
    revived: list[int] = []

    def after_step(model: nn.Module) -> None:
        gradual(model)
        layers = prunable_layers(model)
        revived.append(sum(int((layers[name].weight[~mask] != 0).sum()) for name, mask in masks.items()))  # type: ignore[index]

    fit(trained, train, 2, after_step=after_step)
    assert not any(revived)
