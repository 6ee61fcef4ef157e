"""A little world for the loop: separable images in memory, a net with everything that could go wrong in a resume."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kitae import keyed
from kitae.training import fit as loop
from kitae.training.distributed import World
from kitae.training.fit import FitResult, Record, Source, Tuning
from kitae.training.spec import TrainSpec

WORLD = World(0, 1, torch.device("cpu"))


class ToyData:
    """Two classes of 8x8 images that differ in brightness."""

    def __init__(self, count: int = 70) -> None:
        rng = np.random.default_rng(0)
        self.labels = (np.arange(count) % 2).astype(np.int64)
        noise = rng.integers(0, 120, (count, 3, 8, 8))
        self.images = (noise + 100 * self.labels[:, None, None, None]).astype(np.uint8)
        self.asked: list[NDArray[np.int64]] = []

    def __len__(self) -> int:
        return len(self.labels)

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        return keyed.permutation(seed, epoch, len(self))

    def gather(self, index: NDArray[np.int64], *, seed: int, epoch: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        self.asked.append(index)
        return self.images[index], self.labels[index]


class ToyAugment:
    """Keyed brightness: enough to notice a sample that is augmented under the wrong epoch or index."""

    def __call__(
        self, images: Tensor, targets: Tensor, *, epoch: int, index: NDArray[np.int64], step: int
    ) -> tuple[Tensor, Tensor]:
        shift = torch.from_numpy(keyed.uniform(3, epoch, index, keyed.SLOT_OPS)).float()
        return images.float() / 255 - 0.5 + 0.2 * shift[:, None, None, None], nn.functional.one_hot(targets, 2).float()


def toy_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3),
            nn.Linear(32, 2),
        )  # fmt: skip


@dataclass
class ToyValidate:
    """Accuracy and loss on the training images; counts its calls."""

    data: ToyData
    calls: int = 0

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.calls += 1
        with torch.no_grad():
            logits = model(torch.from_numpy(self.data.images).float() / 255 - 0.5)
        labels = torch.from_numpy(self.data.labels)
        return {
            "val_loss": float(nn.functional.cross_entropy(logits, labels)),
            "val_accuracy": float((logits.argmax(1) == labels).float().mean()),
        }


def fit(
    model: nn.Module, *, spec: TrainSpec, world: World, precision: Any, watcher: Any = None, **parts: Any
) -> FitResult:
    """The loop, with the fields of its records as plain arguments."""

    def take(kind: Any) -> Any:
        return kind(**{field.name: parts.pop(field.name) for field in fields(kind) if field.name in parts})

    source, tuning, record = take(Source), take(Tuning), take(Record)
    assert not parts, parts
    return loop.fit(model, spec, source, world, precision, tuning=tuning, record=record, watcher=watcher)
