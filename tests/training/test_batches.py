"""An epoch's batches: what each process gets, and what augmentation is keyed by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kitae.training.batches import augmented_batches, epoch_shape
from kitae.training.distributed import World
from kitae.training.spec import TrainSpec
from tests.training.toy_world import ToyData


class Seen:
    """Records the keys of each call."""

    def __init__(self) -> None:
        self.keys: list[tuple[int, int, list[int]]] = []

    def __call__(
        self, images: Tensor, targets: Tensor, *, epoch: int, index: NDArray[np.int64], step: int
    ) -> tuple[Tensor, Tensor]:
        self.keys.append((epoch, step, index.tolist()))
        return images, targets


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("first", [0, 2])
def test_processes_share_a_step_of_the_keyed_order(size: int, first: int) -> None:
    data, shape = ToyData(70), epoch_shape(70, TrainSpec(batch_size=16), size)
    seen = []
    for rank in range(size):
        augment = Seen()
        world = World(rank, size, torch.device("cpu"))
        batches = list(augmented_batches(data, augment, shape, world, seed=5, epoch=3, first=first))
        assert len(batches) == shape.steps - first == 4 - first
        seen.append(augment.keys)
    order = data.order(5, 3)
    for place, step in enumerate(range(first, 4)):
        assert {(keys[place][0], keys[place][1]) for keys in seen} == {(3, step)}
        together = [row for keys in seen for row in keys[place][2]]
        assert together == order[step * 16 : step * 16 + 16].tolist()
