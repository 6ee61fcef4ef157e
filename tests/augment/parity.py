"""What the parity tests share: images, comparison with torchvision, and the tie rule of nearest warps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

Batch = NDArray[np.uint8]
EXECUTORS = ("cpu", "torch")
TIE = 1e-3  # a source coordinate this near to halfway between two pixels may go to either


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Torch works on one image at a time here: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photo(seed: int, height: int, width: int) -> Batch:
    """uint8 [3, H, W] like a photograph: soft light, coloured shapes with hard edges, texture, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    light = 140 + 70 * np.cos(2.5 * x + rng.uniform(0, 6)) * np.cos(3.5 * y + rng.uniform(0, 6))
    image = light + np.array([25.0, 0.0, -25.0])[:, None, None] * (x - y)
    for _ in range(5):
        cx, cy, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.3)
        inside = (x - cx) ** 2 + rng.uniform(0.5, 2) * (y - cy) ** 2 < radius**2
        image = np.where(inside, rng.uniform(0, 255, 3)[:, None, None] + 0.3 * (image - 140), image)
    texture = 18 * np.sin(90 * (x + 0.4 * y)) * (y > 0.5)
    return np.clip(image + texture + rng.normal(0, 6, (3, height, width)), 0, 255).astype(np.uint8)


def adversarial(channels: int, height: int, width: int) -> Batch:
    """uint8 [12, C, H, W]: ramps, checkerboards, flat images, all levels, extremes, noise, two neighbouring levels."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[0:height, 0:width]
    every = (np.arange(height * width) * 7 % 256).reshape(height, width)
    planes = [
        255 * x // max(width - 1, 1),
        255 - 255 * y // max(height - 1, 1),
        255 * ((x + y) % 2),
        100 + 60 * ((x // 3 + y // 3) % 2),
        np.zeros_like(x),
        np.full_like(x, 255),
        np.full_like(x, 77),
        every,
        np.where(x * 2 < width, 0, 255),
        100 + (x + y) % 2,
    ]
    images = [np.stack([np.roll(p, 5 * c, 1) if channels > 1 else p for c in range(channels)]) for p in planes]
    images.append(255 * rng.integers(0, 2, (channels, height, width)))
    images.append(rng.integers(0, 256, (channels, height, width)))
    if channels == 3:  # a pure and a near-pure colour: hue and saturation at their limits
        images[6] = np.stack([np.full_like(x, v) for v in (255, 0, 1)])
        images[9] = np.stack([np.full_like(x, 9), 10 + 0 * x, x % 3 + 9])
    return np.stack(images).astype(np.uint8)


@functools.cache
def batch(name: str) -> Batch:
    """A named uint8 batch, read-only, so that an op that writes into its input fails."""
    if name == "grey 28":
        out = np.concatenate([np.stack([photo(s, 28, 28)[:1] for s in range(8)]), adversarial(1, 28, 28)])
    elif name == "grey 33x47":
        out = adversarial(1, 33, 47)
    elif name == "rgb 224":
        out = np.concatenate([np.stack([photo(1, 224, 224)]), adversarial(3, 224, 224)[[7, 10, 11]]])
    else:
        height, width = {"rgb 32": (32, 32), "rgb 33x47": (33, 47), "rgb 40x24": (40, 24), "rgb 3x5": (3, 5)}[name]
        out = np.concatenate([np.stack([photo(s, height, width) for s in range(4)]), adversarial(3, height, width)])
    out.setflags(write=False)
    return out


BATCHES = ("rgb 32", "rgb 33x47", "rgb 224", "grey 28", "grey 33x47")
SMALL = ("rgb 32", "rgb 33x47", "grey 28")


def covering(names: str, *values: Iterable[Any]) -> Any:
    """Parametrize with each value at least once, instead of with every combination of them."""
    given = [list(each) for each in values]
    count = max(map(len, given))
    return pytest.mark.parametrize(names, [tuple(each[i % len(each)] for each in given) for i in range(count)])


def one_by_one(function: Callable[..., torch.Tensor], images: Batch, parameters: Iterable[Any]) -> Batch:
    """torchvision's `function(image, *parameters)` on each image alone."""
    out = [function(torch.from_numpy(image.copy()), *given) for image, given in zip(images, parameters, strict=True)]
    return torch.stack(out).numpy()


def check(ours: Any, reference: Batch, levels: int, what: str) -> float:
    """Assert that no value is more than `levels` away from torchvision's; the share of equal values."""
    mine = ours.numpy() if isinstance(ours, torch.Tensor) else ours
    assert mine.dtype == reference.dtype == np.uint8, what
    assert mine.shape == reference.shape, f"{what}: shape {mine.shape}, torchvision {reference.shape}"
    off = np.abs(mine.astype(np.int16) - reference)
    share = float((off == 0).mean())
    if off.max() > levels:
        n, c, y, x = np.unravel_index(int(off.argmax()), off.shape)
        raise AssertionError(
            f"{what}: {share:.4%} equal, {(off > levels).sum()} values more than {levels} level off; the worst at"
            f" sample {n}, channel {c}, row {y}, column {x}: ours {mine[n, c, y, x]}, torchvision"
            f" {reference[n, c, y, x]}"
        )
    return share


def affine_points(matrix: Iterable[float], height: int, width: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Where each output pixel comes from, in float64: columns and rows [H, W], pixel centres at whole numbers."""
    a, b, c, d, e, f = matrix
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    y, x = y - 0.5 * (height - 1), x - 0.5 * (width - 1)
    return a * x + b * y + c + 0.5 * (width - 1), d * x + e * y + f + 0.5 * (height - 1)


def perspective_points(coefficients: Iterable[float], height: int, width: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same for the eight coefficients of a perspective, which count from the upper left corner of the image."""
    a, b, c, d, e, f, g, h = coefficients
    y, x = np.mgrid[0:height, 0:width].astype(np.float64) + 0.5
    below = g * x + h * y + 1.0
    return (a * x + b * y + c) / below - 0.5, (d * x + e * y + f) / below - 0.5


def check_nearest(
    image: Batch, ours: Any, reference: Batch, points: tuple[NDArray[Any], NDArray[Any]], fill: Any, what: str
) -> float:
    """The tie rule for one image [C, H, W]: equal off ties; at a tie, the colour of one of the neighbours (or fill).

    Returns the share of pixels that are equal.
    """
    mine = ours.numpy() if isinstance(ours, torch.Tensor) else ours
    assert mine.shape == reference.shape == image.shape, what
    channels, height, width = image.shape
    sx, sy = points
    tie = (np.abs(sx - np.floor(sx) - 0.5) < TIE) | (np.abs(sy - np.floor(sy) - 0.5) < TIE)
    differs = (mine != reference).any(0)
    wrong = differs & ~tie
    if wrong.any():
        y, x = np.argwhere(wrong)[0]
        raise AssertionError(
            f"{what}: {wrong.sum()} pixels differ away from ties ({(~differs).mean():.3%} equal); the first at row {y},"
            f" column {x}, from ({sy[y, x]:.5f}, {sx[y, x]:.5f}): ours {mine[:, y, x]}, torchvision"
            f" {reference[:, y, x]}"
        )
    level = np.zeros(channels) if fill is None else np.broadcast_to(np.atleast_1d(np.asarray(fill, float)), channels)
    fits = np.zeros((height, width), bool)
    for dx in (-TIE, TIE):
        for dy in (-TIE, TIE):
            ix, iy = np.rint(sx + dx), np.rint(sy + dy)
            inside = (ix >= 0) & (ix < width) & (iy >= 0) & (iy < height)
            colour = image[:, np.clip(iy, 0, height - 1).astype(int), np.clip(ix, 0, width - 1).astype(int)]
            colour = np.where(inside, colour, np.rint(level)[:, None, None])
            fits |= (mine == colour).all(0)
    assert fits[differs].all(), f"{what}: {(differs & ~fits).sum()} pixels at ties show no neighbour's colour"
    return float((~differs).mean())
