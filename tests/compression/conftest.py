from __future__ import annotations

import copy

import onnx
import pytest
import torch
from torch import nn

from kitae.deployment.onnx import to_onnx
from tests.compression.tiny_world import CARD, Data, TinyNet, fit


@pytest.fixture(scope="session")
def train() -> Data:
    return Data(768, 0)


@pytest.fixture(scope="session")
def selection() -> Data:
    return Data(400, 1)


@pytest.fixture(scope="session")
def _trained(train: Data) -> nn.Module:
    torch.manual_seed(0)
    return fit(TinyNet(), train, 6)


@pytest.fixture
def trained(_trained: nn.Module) -> nn.Module:
    return copy.deepcopy(_trained)


@pytest.fixture(scope="session")
def _graph(_trained: nn.Module) -> onnx.ModelProto:
    return to_onnx(_trained, CARD)


@pytest.fixture
def graph(_graph: onnx.ModelProto) -> onnx.ModelProto:
    return copy.deepcopy(_graph)
