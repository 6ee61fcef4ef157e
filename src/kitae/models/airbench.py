"""The network of the CIFAR-10 speed records: a whitening stem and six convolutions."""

from __future__ import annotations

from torch import Tensor, nn

from kitae.models.layers import classifier, conv3x3

_STEM_FILTER = 2  # pixels


class Airbench(nn.Module):
    """A whitening convolution, three pairs of 3x3 convolutions, max-pools, and a linear classifier.

    Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024 (arXiv 2404.00498), sections 3.1 to 3.3. The 2x2
    filters of the stem are made of the training images, and stay fixed (`starts.whiten`). The other convolutions start
    as identities, with torch's default in the rest. BatchNorm has a shift and no scale. Logits are divided by nine.

    At 32 pixels width 64 costs 118 million multiply-adds forward, 0.71 GFLOP an image in training.

    Args:
        width: channels of the first pair; the others have four times as many.
        fixed: whether the stem's filters are not trained.
    """

    def __init__(self, width: int, *, classes: int, channels: int, dropout: float = 0.0, fixed: bool = True) -> None:
        super().__init__()
        filters = channels * _STEM_FILTER**2
        self.stem = nn.Conv2d(channels, 2 * filters, _STEM_FILTER)
        self.stem.weight.requires_grad_(not fixed)
        self.gelu = nn.GELU()
        self.blocks = nn.Sequential(_pair(2 * filters, width), _pair(width, 4 * width), _pair(4 * width, 4 * width))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = classifier(4 * width, classes, dropout, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """float [N, channels, H, W] -> logits float [N, classes]."""
        x = self.pool(self.blocks(self.gelu(self.stem(images))))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits / 9


class _Norm(nn.BatchNorm2d):
    """BatchNorm with a shift only. Its statistics follow the last few batches, since trainings are short."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.4)
        self.weight.requires_grad_(False)


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        conv3x3(inputs, outputs), nn.MaxPool2d(2), _Norm(outputs), nn.GELU(),
        conv3x3(outputs, outputs), _Norm(outputs), nn.GELU(),
    )  # fmt: skip
