"""The smallest net worth training: two convolutions and two linear layers."""

from __future__ import annotations

from torch import Tensor, nn

from kitae.models.layers import classifier
from kitae.preprocess import Size, sides


class SimpleCNN(nn.Module):
    """conv 32, conv 64 (3x3, ReLU, each followed by a 2x2 max-pool), linear 128, linear to the classes.

    545,098 parameters for 3x32x32 images and 10 classes. It has no normalisation and no residual branch, so the
    arithmetic of pruning and quantization can be checked by hand.

    Weights start from torch's defaults.
    """

    def __init__(self, *, classes: int, channels: int, image_size: Size, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        height, width = sides(image_size)
        self.fc1 = nn.Linear(64 * (height // 4) * (width // 4), 128)
        self.classifier = classifier(128, classes, dropout)

    def forward(self, images: Tensor) -> Tensor:
        """float [N, channels, height, width] -> logits float [N, classes]."""
        x = self.pool(self.relu(self.conv1(images)))
        x = self.pool(self.relu(self.conv2(x)))
        x = self.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.classifier(x)
        return logits
