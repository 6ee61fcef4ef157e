"""The network of the CIFAR-10 speed records: a whitening stem and six convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kitae.models.layers import classifier

_STEM_FILTER = 2  # pixels


class Airbench(nn.Module):
    """A whitening convolution, three pairs of 3x3 convolutions, max-pools, and a linear classifier.

    Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024 (arXiv 2404.00498), sections 3.1 to 3.3. The stem is
    fixed: its 2x2 filters are the directions in which patches of training images vary, each scaled to the same
    variance, and their negatives; see `whiten`. The other convolutions start as identities on as many channels as they
    can, with torch's default in the rest. BatchNorm has a shift and no scale. Logits are divided by nine.

    At 32 pixels width 64 costs 118 million multiply-adds forward, 0.71 GFLOP an image in training.

    Args:
        width: channels of the first pair; the others have four times as many.
    """

    def __init__(self, width: int, *, classes: int, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        filters = channels * _STEM_FILTER**2
        self.stem = nn.Conv2d(channels, 2 * filters, _STEM_FILTER)
        self.stem.weight.requires_grad_(False)
        self.gelu = nn.GELU()
        self.blocks = nn.Sequential(
            _pair(2 * filters, width), _pair(width, 4 * width), _pair(4 * width, 4 * width)
        )  # fmt: skip
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = classifier(4 * width, classes, dropout, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """float [N, channels, H, W] -> logits float [N, classes]."""
        x = self.pool(self.blocks(self.gelu(self.stem(images))))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits / 9

    @torch.no_grad()
    def whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        """Set the stem's filters from training images as the network takes them, float [N, channels, H, W].

        Args:
            eps: added to the variances, so that directions without variance are not amplified.
        """
        side, weight = _STEM_FILTER, self.stem.weight
        patches = images.double().cpu().unfold(2, side, 1).unfold(3, side, 1)  # [N, C, H - 1, W - 1, 2, 2]
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, weight[0].numel())
        variances, directions = torch.linalg.eigh(flat.T @ flat / len(flat))
        whitening = (directions / (variances + eps).sqrt()).T.flip(0)
        # The sign of a direction is free, and differs between libraries: its largest entry is positive.
        signs = whitening.gather(1, whitening.abs().argmax(1, keepdim=True)).sign()
        filters = (whitening * signs).reshape(-1, *weight.shape[1:])
        weight.copy_(torch.cat([filters, -filters]))


class _Conv(nn.Conv2d):
    """3x3 without bias, and at first the identity on as many channels as it has."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        with torch.no_grad():
            nn.init.dirac_(self.weight[: min(inputs, outputs)])


class _Norm(nn.BatchNorm2d):
    """BatchNorm with a shift only. Its statistics follow the last few batches, since trainings are short."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.4)
        self.weight.requires_grad_(False)


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        _Conv(inputs, outputs), nn.MaxPool2d(2), _Norm(outputs), nn.GELU(),
        _Conv(outputs, outputs), _Norm(outputs), nn.GELU(),
    )  # fmt: skip
