from __future__ import annotations

import torch
from torch import nn

from kitae.compression.counting import Counts, compressed_bytes, count
from kitae.compression.masks import apply_masks, magnitude_masks
from tests.compression.tiny_world import kitae_net


def test_zeros_are_worth_compressed_bytes() -> None:
    net = kitae_net("simple_cnn")
    before = compressed_bytes(net)
    apply_masks(net, magnitude_masks(net, 0.8))
    assert compressed_bytes(net) < 0.4 * before


def test_a_weight_that_two_layers_share_counts_once() -> None:
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    net[1].weight = net[0].weight
    torch.nn.init.zeros_(net[0].weight)
    assert count(net) == Counts(parameters=120, zeros=100)
