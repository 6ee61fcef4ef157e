from __future__ import annotations

from kitae.compression.counting import compressed_bytes
from kitae.compression.masks import apply_masks, magnitude_masks
from tests.compression.tiny_world import kitae_net


def test_zeros_are_worth_compressed_bytes() -> None:
    net = kitae_net("simple_cnn")
    before = compressed_bytes(net)
    apply_masks(net, magnitude_masks(net, 0.8))
    assert compressed_bytes(net) < 0.4 * before
