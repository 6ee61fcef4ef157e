from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kitae.compression.calibrate import calibrate
from kitae.compression.quantize import static
from kitae.deployment.onnx import Card, to_onnx
from kitae.deployment.verify import file_reference, probe_images, torch_reference
from kitae.preprocess import PreprocessRules

pytestmark = pytest.mark.usefixtures("operators_read_once")

CARD = Card(tuple("abcde"), PreprocessRules(16), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), temperature=1.7)


class Net(nn.Module):
    """A convolution, a pool over the whole image, a classifier, and a number times its scores."""

    def __init__(self, pool: nn.Module, bias: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = pool
        self.classifier = nn.Linear(8, 5, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.pool(self.conv(images).relu()).flatten(1))
        return scores * 3.0


def operations(network: nn.Module) -> list[str]:
    return [node.op_type for node in to_onnx(network, CARD).graph.node]


@pytest.mark.parametrize(
    ("pool", "becomes", "bias"),
    [(nn.AdaptiveAvgPool2d(1), "GlobalAveragePool", True), (nn.AdaptiveMaxPool2d(1), "MaxPool", False)],
)
def test_pools_and_scales(pool: nn.Module, becomes: str, bias: bool) -> None:
    torch.manual_seed(0)
    network = Net(pool, bias).eval()
    proto = to_onnx(network, CARD)
    kinds = [node.op_type for node in proto.graph.node]
    assert becomes in kinds
    assert not {"ReduceMax", "ReduceMean"} & set(kinds)
    assert kinds[-2:] == ["Gemm", "Softmax"], "the scale and the temperature lie in the weights"
    used = {name for node in proto.graph.node for name in node.input}
    assert {item.name for item in proto.graph.initializer} <= used, "and nothing is left of the numbers"
    images = probe_images(CARD.rules.shape, 40)
    expected = torch_reference(network, CARD.mean, CARD.std, CARD.temperature)(images)
    found = file_reference(proto.SerializeToString())(images)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_pool_is_computed_in_integers() -> None:
    """What it is for: in an INT8 graph nothing between the first and the last layer goes back to float."""
    torch.manual_seed(0)
    proto = to_onnx(Net(nn.AdaptiveMaxPool2d(1), True).eval(), CARD)
    quantized = static(proto, calibrate(proto, probe_images(CARD.rules.shape, 32)))
    before = {name: node for node in quantized.graph.node for name in node.output}
    (pool,) = [node for node in quantized.graph.node if node.op_type == "MaxPool"]
    assert before[pool.input[0]].op_type == "DequantizeLinear"
    assert [node.op_type for node in quantized.graph.node if pool.output[0] in node.input] == ["QuantizeLinear"]


def test_what_does_not_fit_is_left() -> None:
    class Rows(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features.amax(dim=2).amax(dim=2)

    assert "ReduceMax" in operations(Net(Rows(), True).eval()), "a maximum over rows is no pool over the image"

    class Shared(Net):
        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.classifier(self.pool(self.conv(images).relu()).flatten(1))
            return scores * 3.0 + scores

    kinds = operations(Shared(nn.AdaptiveAvgPool2d(1), True).eval())
    assert "Mul" in kinds[kinds.index("Gemm") :], "scores that are used twice are not scaled"
