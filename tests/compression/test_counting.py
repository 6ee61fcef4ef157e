from __future__ import annotations

import torch.nn.utils.prune
from torch import nn

from kitae.compression.counting import compressed_bytes, count
from kitae.compression.masks import apply_masks, magnitude_masks
from tests.compression.tiny_world import TinyNet, kitae_net


def test_counting_sees_effective_weights() -> None:
    net = TinyNet()
    plain = count(net)
    torch.nn.utils.prune.l1_unstructured(net.conv1, "weight", amount=0.5)
    nn.utils.parametrizations.weight_norm(net.point)
    assert sum(int((p == 0).sum()) for p in net.conv1.parameters()) == 0, "the naive count reads zero"
    counts = count(net)
    assert counts.parameters == plain.parameters
    assert counts.zeros == round(0.5 * net.conv1.weight.numel())


def test_zeros_are_worth_compressed_bytes() -> None:
    net = kitae_net("simple_cnn")
    before = compressed_bytes(net)
    apply_masks(net, magnitude_masks(net, 0.8))
    assert compressed_bytes(net) < 0.4 * before
