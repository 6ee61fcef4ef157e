"""Gradients of depthwise convolutions in bfloat16 are those of torch in float32."""

from __future__ import annotations

import platform
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kitae.native import threads
from kitae.training import depthwise
from kitae.training import learner as learner_module
from kitae.training.batches import epoch_shape
from kitae.training.checkpoint import Progress
from kitae.training.depthwise import DepthwiseGradients
from kitae.training.learner import Learner
from kitae.training.precision import Precision, autocast, fast_depthwise
from kitae.training.spec import TrainSpec
from tests.training.toy_world import WORLD

CPU, LAST = torch.device("cpu"), torch.channels_last


def rounded(*shape: int) -> Tensor:
    """Numbers that bfloat16 has."""
    return torch.randn(*shape).bfloat16().float()


def gradients(layer: nn.Module, images: Tensor, pull: Tensor, *, ours: bool) -> dict[str, Tensor]:
    """Of the input and of each parameter; in float32 with torch's own, or in bfloat16 within the context."""
    layer.zero_grad()
    images = images.clone().requires_grad_()
    if ours:
        with autocast("bf16", CPU), DepthwiseGradients():
            out = layer(images)
        assert out.dtype == torch.bfloat16
    else:
        out = layer(images)
    out.backward(pull.to(out.dtype))  # type: ignore[no-untyped-call]
    assert images.grad is not None
    return {"input": images.grad} | {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """All gradients of weights are ours."""
    monkeypatch.setattr(depthwise, "_LIBRARY_KERNEL", 0)


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("batch", "channels", "size", "options"),
    [
        (5, 24, (15, 17), {"kernel_size": 5, "stride": 2, "padding": 2}),
        (3, 33, (9, 8), {"kernel_size": 3, "stride": (2, 1), "padding": (0, 1), "bias": False}),
        (2, 40, (12, 12), {"kernel_size": (1, 7), "padding": (0, 3)}),
        (2, 16, (20, 20), {"kernel_size": 3, "dilation": 2, "padding": 2}),
        (150, 8, (4, 4), {"kernel_size": 5, "padding": 2}),  # more images than parts
        (1, 8, (1, 1), {"kernel_size": 3, "padding": 1}),
    ],
)
def test_gradients_are_those_of_float32(
    batch: int, channels: int, size: tuple[int, int], options: dict[str, Any], channels_last: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, channels, groups=channels, **options)
    for parameter in layer.parameters():
        parameter.data = parameter.data.bfloat16().float()
    images = rounded(batch, channels, *size)
    if channels_last:
        layer, images = layer.to(memory_format=LAST), images.contiguous(memory_format=LAST)
    pull = rounded(*layer(images).shape)
    wanted, found = (gradients(layer, images, pull, ours=ours) for ours in (False, True))
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        near = 2.0**-8 if name == "input" else 1e-5  # that of the input is rounded to bfloat16
        assert (value - wanted[name]).abs().max() <= near * wanted[name].abs().max(), name


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("stride", [1, 2])
def test_bits_do_not_depend_on_threads(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on whose they are: where PyTorch has no GNU OpenMP, they are Python's."""
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 32, 5, stride=stride, padding=2, groups=32)
    images = torch.randn(21, 32, 30, 30)
    pull = torch.randn(layer(images).shape)
    monkeypatch.setattr(depthwise, "_SHARED", 0)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(gradients(layer, images, pull, ours=True))
        monkeypatch.setattr(threads, "_openmp", lambda: None)
        found.append(gradients(layer, images, pull, ours=True))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other["weight"], found[0]["weight"])
        assert stride == 1 or torch.equal(other["input"], found[0]["input"])


def test_what_is_not_finite_is_seen() -> None:
    """A step whose gradient is not finite is skipped."""
    layer = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8)
    for bad in (float("nan"), float("inf")):
        pull = torch.ones(1, 8, 4, 4)
        pull[0, 3, 1, 1] = bad
        found = gradients(layer, torch.ones(1, 8, 8, 8), pull, ours=True)
        assert not found["weight"][3].isfinite().all()
        assert not found["input"][0, 3].isfinite().all()
        assert found["weight"][:3].isfinite().all()


@pytest.mark.usefixtures("no_library")
def test_defaults_of_torch_do_not_matter() -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8), torch.randn(3, 8, 9, 9)
    pull = torch.randn(3, 8, 5, 5)
    wanted = gradients(layer, images, pull, ours=True)
    try:
        torch.set_default_dtype(torch.float64)
        found = gradients(layer, images, pull, ours=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_other_convolutions_are_torchs() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 3, groups=2),  # several inputs for each output
        nn.Conv2d(8, 16, 3, groups=8),  # several outputs for each input
        nn.Conv2d(16, 16, 3, groups=16, padding="same"),
    )
    images = torch.randn(2, 3, 16, 16)
    seen: list[torch.dtype] = []
    for layer in net:
        layer.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    with autocast("bf16", CPU), DepthwiseGradients():
        net(images).float().sum().backward()
        with torch.no_grad():
            net(images)
    assert seen == [torch.bfloat16] * 2 + [torch.float32] * 2 + [torch.bfloat16] * 4
    with DepthwiseGradients():  # no autocast
        assert net(images).dtype == torch.float32


def test_frozen_weights_get_no_gradient() -> None:
    layer = nn.Conv2d(8, 8, 5, stride=2, groups=8).requires_grad_(False)
    images = torch.randn(2, 8, 9, 9)
    assert set(gradients(layer, images, torch.ones(2, 8, 3, 3), ours=True)) == {"input"}
    with autocast("bf16", CPU), DepthwiseGradients():
        assert not layer(images).requires_grad


def test_where_the_forward_pass_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    def fast(machine: str, precision: Precision, device: str = "cpu", onednn: bool = True) -> bool:
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
        fast_depthwise.cache_clear()
        return fast_depthwise(precision, torch.device(device))

    try:
        assert fast("x86_64", "bf16")
        assert not fast("aarch64", "bf16")
        assert not fast("x86_64", "bf16", onednn=False)
        assert not fast("x86_64", "fp32")
        assert not fast("x86_64", "bf16", "cuda")
    finally:
        fast_depthwise.cache_clear()


@pytest.mark.parametrize(("compiled", "fast"), [(False, True), (True, True), (False, False)])
def test_a_step_uses_them(compiled: bool, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else, as in a network that torch.compile traces, depthwise convolutions are in float32."""
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(learner_module, "fast_depthwise", lambda precision, device: fast)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 5, groups=4), nn.Flatten(), nn.Linear(64, 2))
    seen: list[torch.dtype] = []
    net[1].register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    asked: list[Tensor] = []
    original = depthwise.weight_gradient
    monkeypatch.setattr(depthwise, "weight_gradient", lambda *values: (asked.append(values[2]), original(*values))[1])
    spec = TrainSpec(batch_size=2, compile=compiled)
    with Learner(net, spec, epoch_shape(2, spec), WORLD, "bf16") as learner:
        learner.step(torch.randn(2, 3, 8, 8), torch.eye(2), Progress())
    ours = fast and not compiled
    assert seen == [torch.bfloat16 if ours else torch.float32]
    assert len(asked) == ours
