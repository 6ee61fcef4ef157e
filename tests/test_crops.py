"""Random resized crops of whole pictures: the op's own draw and torchvision's pixels, whatever the threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

from kitae.augment.ops.geometry import RandomResizedCrop
from kitae.augment.plan import sample_key
from kitae.augment.spec import AugmentSpec
from kitae.crops import SLOT, PictureCrop, first_crop

SIZES = [(40, 70), (70, 40), (33, 33), (20, 90), (12, 9), (64, 64), (5, 200)]


@dataclass
class Store:
    """Whole pictures as a store keeps them."""

    pixels: NDArray[np.uint8]
    starts: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    shape: tuple[int, int, int, int]


def pictures(channels: int, size: tuple[int, int] = (32, 32)) -> tuple[list[NDArray[np.uint8]], Store]:
    rng = np.random.default_rng(channels)
    whole = [rng.integers(0, 256, (channels, *size), np.uint8) for size in SIZES]
    starts = np.cumsum([0, *(image.size for image in whole)])
    heights, widths = np.array(SIZES, np.int64).T.copy()
    pixels = np.concatenate([image.ravel() for image in whole])
    return whole, Store(pixels, starts, heights, widths, (len(whole), channels, *size))


def crop_of(
    op: RandomResizedCrop, channels: int = 3, size: tuple[int, int] = (32, 32), threads: int = 2
) -> PictureCrop:
    return PictureCrop(op, pictures(channels, size)[1], threads)


ROWS = np.arange(70) % len(SIZES)
INDEX = ROWS + (np.arange(70) // 7 << 32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (24, 48), (96, 96)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.35, 1.0), (0.01, 0.02)])
def test_windows_are_the_op_s_and_pixels_torchvision_s(
    channels: int, size: tuple[int, int], scale: tuple[float, float]
) -> None:
    op = RandomResizedCrop(scale=scale)
    out = crop_of(op, channels, size)(ROWS, INDEX, 3, 5)
    assert out.shape == (70, channels, *size)
    whole, _ = pictures(channels)
    numbers = np.array([*size, *op.scale, *op.ratio])
    for image, row, index in zip(out, ROWS, INDEX, strict=True):
        codes, args = np.zeros(1, np.int64), np.zeros(12)
        op.plan(sample_key(3, 5, int(index), SLOT), numbers, codes, args, *SIZES[row])
        top, left, height, width = (int(value) for value in args[:4])
        expected = F.resized_crop(
            torch.from_numpy(whole[row]), top, left, height, width, list(size), antialias=True
        ).numpy()
        assert np.abs(image.astype(int) - expected).max() <= 1


def test_a_crop_depends_on_seed_epoch_and_index_alone() -> None:
    crop = crop_of(RandomResizedCrop())
    out = crop(ROWS, INDEX, 3, 5)
    order = np.random.default_rng(0).permutation(70)
    assert (crop(ROWS[order], INDEX[order], 3, 5) == out[order]).all()
    assert (crop_of(RandomResizedCrop(), threads=1)(ROWS, INDEX, 3, 5) == out).all()
    assert (crop_of(RandomResizedCrop(), threads=7)(ROWS[:3], INDEX[:3], 3, 5) == out[:3]).all()
    for other in (crop(ROWS, INDEX, 4, 5), crop(ROWS, INDEX, 3, 6), crop(ROWS, INDEX + (1 << 40), 3, 5)):
        assert (other != out).any(axis=(1, 2, 3)).mean() > 0.8  # a sliver of 5 x 200 has one window only
    assert crop(ROWS[:0], INDEX[:0], 3, 5).shape == (0, 3, 32, 32)


def test_a_size_of_the_op_s_own_is_taken() -> None:
    assert crop_of(RandomResizedCrop(size=20))(ROWS, INDEX, 0, 0).shape == (70, 3, 20, 20)
    assert crop_of(RandomResizedCrop(size=(20, 40))).shape == (3, 20, 40)


def test_windows_of_the_whole_picture_are_seen() -> None:
    """Not of a central square: the left and right ends of a wide picture are in some crop."""
    ends = np.zeros((1, 32, 96), np.uint8)
    ends[:, :, :8], ends[:, :, -8:] = 100, 200
    store = Store(ends.ravel(), np.array([0, ends.size]), np.array([32]), np.array([96]), (1, 1, 16, 16))
    crop = PictureCrop(RandomResizedCrop(scale=(0.3, 0.3)), store, 1)
    out = crop(np.zeros(50, np.int64), np.arange(50), 0, 0)
    assert (out == 100).any()
    assert (out == 200).any()


def test_only_a_first_crop_of_whole_pictures_reads_from_the_store() -> None:
    store = pictures(3)[1]
    first = AugmentSpec(train=({"random_resized_crop": {}}, {"horizontal_flip": {}}))
    crop, ops = first_crop(first, store, 1)
    assert isinstance(crop, PictureCrop)
    assert [op.name for op in ops] == ["horizontal_flip"]
    later = AugmentSpec(train=({"horizontal_flip": {}}, {"random_resized_crop": {}}))
    for spec, images in ((later, store), (AugmentSpec(), store), (first, np.zeros((2, 3, 8, 8), np.uint8))):
        crop, ops = first_crop(spec, images, 1)
        assert crop is None
        assert len(ops) == len(spec.train)
