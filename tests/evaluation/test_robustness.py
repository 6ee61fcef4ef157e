"""Accuracy under corruptions, on a model whose every answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kitae.errors import DataError
from kitae.evaluation.evaluate import Corruption, accuracy_under


class Bright(nn.Module):
    """Class 1 where the mean pixel is above one half."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([torch.full_like(mean, 0.5), mean], dim=1)


IMAGES = np.repeat(np.array([40, 100, 160, 220], dtype=np.uint8), 5).reshape(20, 1, 1, 1) * np.ones(
    (1, 3, 4, 4), np.uint8
)
LABELS = np.repeat([0, 0, 1, 1], 5)


def gather(rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return IMAGES[rows], LABELS[rows]


def brighter(by: int) -> Corruption:
    return lambda images, rows: np.clip(images.astype(int) + by, 0, 255).astype(np.uint8)


def noise(images: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.where(rows[:, None, None, None] % 3 == 0, 255 - images, images).astype(np.uint8)


def test_accuracy_falls_as_images_get_worse() -> None:
    corruptions = {"brightness": [brighter(10), brighter(50), brighter(200)], "darkness": [brighter(-80)]}
    result = accuracy_under(Bright(), gather, np.arange(20), corruptions, batch_size=6)
    assert result == {"brightness": [1.0, 0.75, 0.5], "darkness": [0.75]}


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_a_corruption_sees_the_rows_so_the_batch_does_not_matter(batch_size: int) -> None:
    rows = np.arange(20)[::-1]
    result = accuracy_under(Bright(), gather, rows, {"noise": [noise]}, batch_size=batch_size)
    assert result["noise"] == [pytest.approx(1 - 7 / 20)]


def test_a_corruption_keeps_shape_and_dtype() -> None:
    with pytest.raises(DataError, match=r"corruption crop must give uint8 \[20, 3, 4, 4\], not uint8 \[20, 3, 2, 2\]"):
        accuracy_under(Bright(), gather, np.arange(20), {"crop": [lambda images, rows: images[..., :2, :2]]})
    with pytest.raises(DataError, match="not float64"):
        accuracy_under(Bright(), gather, np.arange(20), {"half": [lambda images, rows: images / 2]})
