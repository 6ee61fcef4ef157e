from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kitae.compression.calibrate import calibrate
from kitae.compression.qat import Simulated
from kitae.compression.quantize import distance, probabilities, static
from kitae.deployment.onnx import to_onnx
from kitae.deployment.verify import torch_reference
from kitae.errors import CompressionError
from kitae.models.build import build
from kitae.models.spec import ModelSpec
from tests.compression.reference import assert_bit_for_bit
from tests.compression.tiny_world import CARD, MEAN, SHAPE, STD, Data, TinyNet, accuracy, fit
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("patterns_traced_once")


@pytest.fixture(scope="session")
def _simulated(_trained: nn.Module, train: Data, patterns_traced_once: None) -> Simulated:
    return Simulated(_trained, SHAPE).observe(train.batches())


@pytest.fixture
def simulated(_simulated: Simulated) -> Simulated:
    return copy.deepcopy(_simulated)


def fragile(net: nn.Module) -> nn.Module:
    """Make a network that rounding hurts: channels of very different scales, which one scale a tensor cannot serve."""
    with torch.no_grad():
        factor = torch.logspace(-2.2, 0.8, 12)
        net.norm1.weight *= factor
        net.norm1.bias *= factor
        net.conv2.weight /= factor.reshape(1, -1, 1, 1)
    return net


def test_the_program_s_random_numbers_are_not_drawn(trained: nn.Module) -> None:
    before = torch.get_rng_state()
    Simulated(trained, SHAPE).train().eval()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_training_through_the_loop_beats_rounding_afterwards(trained: nn.Module, train: Data, selection: Data) -> None:
    net = fragile(trained)

    def quantized(model: nn.Module) -> tuple[float, np.ndarray]:
        proto = to_onnx(model, CARD)
        ranges = calibrate(proto, train.images, "average")
        graph = static(proto, ranges)
        assert_bit_for_bit(graph, proto, "any", ranges=ranges)
        result = probabilities(graph, selection.images)
        return float((result.argmax(1) == selection.labels).mean()), result

    after, _ = quantized(net)
    simulated = Simulated(net, SHAPE).observe(train.batches())
    simulated = fit(simulated, train, 4, lr=0.005, teacher=net)
    trained_for, integers = quantized(simulated.weights_into(net))
    assert accuracy(net, selection) > after + 0.02, "rounding hurts this network"
    assert trained_for > after + 0.02, "and training for it helps"
    seen = torch_reference(simulated, MEAN, STD)(selection.images)
    assert distance(seen, integers)[1] < 0.05, "what was simulated is what is deployed"


def test_the_original_is_untouched_and_the_copy_has_its_layout(
    simulated: Simulated, trained: nn.Module, train: Data
) -> None:
    before = copy.deepcopy(trained.state_dict())
    learnt = fit(simulated, train, 1, lr=0.01).weights_into(trained)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert learnt.state_dict().keys() == before.keys()
    assert not torch.equal(learnt.conv1.weight, trained.conv1.weight)
    assert not torch.equal(learnt.norm1.running_mean, trained.norm1.running_mean), "BatchNorm went on learning"


def test_observers_hold_still_in_eval_mode(simulated: Simulated, train: Data) -> None:
    def scales() -> list[Tensor]:
        return [v.clone() for name, v in simulated.state_dict().items() if name.endswith("scale")]

    images, _ = train.tensors()
    before = scales()
    assert len(before) > 6
    simulated.eval()
    with torch.no_grad():
        first = simulated(images[:50])
        assert torch.equal(first, simulated(images[:50]))
        simulated(images * 9)
    assert all(torch.equal(a, b) for a, b in zip(before, scales(), strict=True))
    simulated.train()
    simulated(images * 9)
    assert not all(torch.equal(a, b) for a, b in zip(before, scales(), strict=True))


def test_frozen_statistics_stay(trained: nn.Module, train: Data) -> None:
    """A network that was fine-tuned with frozen statistics keeps them in its 8-bit training too."""

    class Frozen(TinyNet):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            for module in self.modules():
                module.training &= not isinstance(module, nn.BatchNorm2d)
            return self

    frozen = Frozen()
    frozen.load_state_dict(trained.state_dict())
    for net, stays in ((frozen, True), (trained, False)):
        simulated = Simulated(net.train(), SHAPE)
        simulated.train()(train.tensors()[0][:64])
        learnt = simulated.weights_into(net)
        assert torch.equal(learnt.norm.running_mean, net.norm.running_mean) == stays


def test_any_batch_size_autocast_and_deepcopy(simulated: Simulated, train: Data) -> None:
    simulated.eval()
    images, _ = train.tensors()
    with torch.no_grad():
        expected = simulated(images[:7])
        assert simulated(images[:1]).shape == (1, 4)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(simulated(images[:7]), expected)
        assert torch.equal(copy.deepcopy(simulated)(images[:7]), expected)


def test_weights_keep_to_the_target(simulated: Simulated, trained: nn.Module) -> None:
    def limits(model: Simulated) -> set[int]:
        return {module.quant_max for module in model.graph.modules() if getattr(module, "dtype", None) == torch.int8}

    assert limits(simulated) == {64}
    assert limits(Simulated(trained, SHAPE, "vnni")) == {127}


def test_stochastic_depth_and_dropout_do_not_disturb_tracing() -> None:
    spec = ModelSpec(name="resnet9", width=4, stochastic_depth=0.5, dropout=0.5)
    net = build(spec, classes=4, channels=3, image_size=32).train()
    simulated = Simulated(net, (3, 32, 32))
    assert simulated.training
    x = torch.randn(5, 3, 32, 32)
    assert not torch.equal(simulated(x), simulated(x)), "dropout is on in training"
    simulated.eval()
    with torch.no_grad():
        assert torch.equal(simulated(x), simulated(x))
    simulated.weights_into(net)


def test_what_cannot_be_traced_or_quantized_is_said() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 144, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(1)) if x.sum() > 0 else x.flatten(1)[:, :4]

    refused(CompressionError, "cannot be traced", Simulated, Branches(), SHAPE)


def test_a_network_that_loses_a_weight_in_tracing_is_said() -> None:
    class Unused(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x))

    net = Unused(nn.Flatten(), nn.Linear(3 * 144, 4), nn.Linear(4, 4))
    words = r"the weight 2\.weight was lost in tracing; use --quantize static"
    refused(CompressionError, words, Simulated(net, SHAPE).weights_into, net)


def test_distance() -> None:
    p = np.float32([[0.9, 0.1], [0.2, 0.8]])
    assert distance(p, p) == (pytest.approx(0, abs=1e-7), 0)
    divergence, flips = distance(p, np.float32([[0.4, 0.6], [0.2, 0.8]]))
    assert flips == 0.5
    assert divergence == pytest.approx((0.9 * np.log(0.9 / 0.4) + 0.1 * np.log(0.1 / 0.6)) / 2, rel=1e-4)
