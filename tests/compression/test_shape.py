from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from kitae.compression.channels import masked_original, remove_channels
from kitae.compression.shape import Shape, reshape
from kitae.errors import CompressionError
from tests.compression.tiny_world import TinyNet, kitae_net, noise
from tests.refusals import refused


@pytest.mark.parametrize("name", ["resnet8", "simple_cnn", "resnet9"])
def test_rebuilt_from_configuration_and_weights(name: str) -> None:
    net = kitae_net(name)
    result = remove_channels(net, (3, 32, 32), 0.5, batches=noise(3, 32, 32))
    shape = Shape.model_validate_json(result.shape.model_dump_json())
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


def test_a_shape_of_another_network() -> None:
    shape = remove_channels(kitae_net("resnet8"), (3, 32, 32), 0.5, batches=noise(3, 32, 32)).shape
    refused(CompressionError, "does not fit this network", reshape, TinyNet(), shape)
    with pytest.raises(ValidationError, match=r"attributes\.stem\.forward"):
        Shape.model_validate({"tensors": {}, "attributes": {"stem": {"forward": 1}}, "kept": {}})
    for name in ("nowhere", "stem"):
        other = Shape(tensors={}, attributes={name: {"num_parameters": 1}}, kept={})
        refused(CompressionError, rf"names {name}\.num_parameters, which", reshape, TinyNet(), other)
