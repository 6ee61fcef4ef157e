"""A network and data small enough to train in a test, and a plain training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kitae.deployment.onnx import Card
from kitae.models.build import build
from kitae.models.spec import ModelSpec
from kitae.preprocess import PreprocessRules

MEAN, STD = (0.45, 0.5, 0.55), (0.25, 0.25, 0.2)
SHAPE = (3, 12, 12)
CARD = Card(("a", "b", "c", "d"), PreprocessRules(SHAPE[1]), MEAN, STD)


class TinyNet(nn.Module):
    """Convolutions with BatchNorm, a residual, a strided shortcut and a depthwise convolution."""

    def __init__(self, classes: int = 4, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.point = nn.Conv2d(width, 2 * width, 1)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))) + x)
        x = torch.relu(self.norm3(self.depthwise(x)))
        logits: Tensor = self.classifier(torch.relu(self.point(x)).mean((2, 3)))
        return logits


def kitae_net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(ModelSpec(name=name), classes=10, channels=3, image_size=32).eval()


class Data:
    """Four classes of coloured stripes under noise, uint8: easy, but not for a network with broken arithmetic."""

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 4, count)
        grid = np.indices(SHAPE[1:])
        images = rng.normal(128, 40, (count, *SHAPE))
        for k, label in enumerate(self.labels):
            stripes = np.sign(np.sin(grid[label % 2] * 2.1 + rng.uniform(0, 6)))
            images[k, label // 2 :: 2] += 45 * stripes
        self.images: NDArray[np.uint8] = images.clip(0, 255).astype(np.uint8)

    def tensors(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
        return (torch.from_numpy(self.images).float() / 255 - mean) / std, torch.from_numpy(self.labels)

    def batches(self, size: int = 64) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
        images, labels = self.tensors()
        return lambda: zip(images.split(size), labels.split(size), strict=True)


def noise(*shape: int) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    """A batch of noise, for networks that are not trained."""
    images = 2 * torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)) - 1
    return lambda: [(images, torch.zeros(4, dtype=torch.int64))]


def fit(
    model: nn.Module,
    data: Data,
    epochs: int,
    lr: float = 0.05,
    after_step: Callable[[nn.Module], None] | None = None,
    teacher: nn.Module | None = None,
) -> nn.Module:
    """A plain training loop with momentum, so that masked weights would come back."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    images, labels = data.tensors()
    for _ in range(epochs):
        model.train()
        for index in torch.randperm(len(labels), generator=generator).split(64):
            logits = model(images[index])
            loss = nn.functional.cross_entropy(logits, labels[index])
            if teacher is not None:
                with torch.no_grad():
                    target = teacher(images[index])
                loss = loss + 0.02 * nn.functional.mse_loss(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if after_step is not None:
                after_step(model)
        model.eval()
        with torch.no_grad():
            model(images[:32])  # validation, as the loop does
    return model.eval()


def accuracy(model: nn.Module, data: Data) -> float:
    images, labels = data.tensors()
    model.eval()
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())
