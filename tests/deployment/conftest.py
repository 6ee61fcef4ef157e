from __future__ import annotations

import copy

import onnx
import pytest
import torch
from torch import Tensor, nn

from kitae.deployment.onnx import Card, to_onnx
from kitae.preprocess import PreprocessRules


class TinyNet(nn.Module):
    """Convolutions with BatchNorm, a residual, a strided shortcut and, in training only, a random op."""

    def __init__(self, classes: int = 5, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.right = nn.Conv2d(8, 12, 1, stride=2)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        branch = self.left(x)
        if self.training:  # stochastic depth
            branch = branch * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5))
        x = torch.relu(branch + self.right(x))
        return self.head(self.dropout(x.mean((2, 3))))


@pytest.fixture(scope="session")
def _network() -> nn.Module:
    """A TinyNet whose BatchNorm has seen data and whose outputs are spread."""
    torch.manual_seed(0)
    net = TinyNet()
    net.train()
    with torch.no_grad():
        for _ in range(4):
            net(torch.randn(32, 3, 16, 16))
        net.head.weight *= 8
    return net.eval()


@pytest.fixture
def network(_network: nn.Module) -> nn.Module:
    return copy.deepcopy(_network)


@pytest.fixture(scope="session")
def card() -> Card:
    return Card(
        classes=("a", "b", "c", "d", "e"),
        rules=PreprocessRules(16, 3, "crop"),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
        temperature=1.7,
        recipe="tiny",
    )


@pytest.fixture(scope="session")
def _proto(_network: nn.Module, card: Card) -> onnx.ModelProto:
    return to_onnx(_network, card)


@pytest.fixture
def proto(_proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of `network`."""
    return copy.deepcopy(_proto)
