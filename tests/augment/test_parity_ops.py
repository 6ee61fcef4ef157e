"""Every op with given parameters against torchvision 0.29 v2 on uint8 tensors: one table, and what is no comparison."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torchvision.transforms.functional import _get_inverse_affine_matrix, _get_perspective_coeffs
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from kitae.augment import functional as F
from tests.augment.parity import (
    BATCHES,
    EXECUTORS,
    SMALL,
    Batch,
    affine_points,
    batch,
    check,
    check_nearest,
    one_by_one,
    perspective_points,
)
from tests.augment.parity import one_thread as one_thread

pytestmark = [pytest.mark.parametrize("executor", EXECUTORS)]

TIES = -1  # no value differs, except that halfway between two pixels either may be taken

Value = Any  # what one image is given: a number, or a tuple of several
Draw = Callable[[int, int, int], list[Value]]


class Row(NamedTuple):
    """One comparison: our op and torchvision's function, on the same images with the same values.

    Each value meets each image; of 224 pixels, each value meets one, unless the row is slow. A function (count, height,
    width) draws the values instead: value k meets image k, and the images go round until every value had one.
    `settings` are the same for all images and go to both by name.
    """

    op: str
    theirs: Callable[..., Tensor]
    values: Sequence[Value] | Draw
    levels: int
    """How far a value may be off, or TIES."""
    share: float = 0.0
    """The least share of equal values; of equal pixels where the rule is TIES."""
    on: Sequence[str] = BATCHES
    settings: Mapping[str, Any] = MappingProxyType({})
    slow: bool = False


def compare(row: Row, images: Batch, executor: str) -> None:
    n, channels, height, width = images.shape
    values = row.values(n, height, width) if callable(row.values) else list(row.values)
    if callable(row.values) or (height == 224 and not row.slow and values != NONE):
        images = np.concatenate([images] * -(-len(values) // n))[: len(values)]
    else:
        images, values = np.repeat(images, len(values), 0), values * n
    values = [value if isinstance(value, tuple) else (value,) for value in values]
    colours = {k: v[:channels] for k, v in row.settings.items() if k in ("fill", "value") and isinstance(v, tuple)}
    settings = {**row.settings, **colours}
    ours = getattr(F, row.op)
    names = [name for name in inspect.signature(ours).parameters if name not in ("images", "executor", *settings)]
    columns = dict(zip(names, map(np.array, zip(*values, strict=True)), strict=False))
    mine = ours(images, **columns, **settings, executor=executor)
    reference = one_by_one(lambda image, *value: row.theirs(image, *value, **settings), images, values)
    what = f"{row.op} {settings or ''} ({executor})"
    if row.levels != TIES:
        share = check(mine, reference, row.levels, what)
    else:
        fill, shares = settings.get("fill"), []
        for i, value in enumerate(values):
            points = POINTS[row.op](value, height, width, settings)
            shares.append(check_nearest(images[i], mine[i], reference[i], points, fill, f"{what}: {value}"))
        share = float(np.mean(shares))
    assert share >= row.share, f"{what}: only {share:.3%} equal torchvision's"


# Images beside the named batches --------------------------------------------------------------------------------------


def cube(*levels: Any) -> Batch:
    """uint8 [1, 3, H, W]: every colour of these levels of red, green and blue."""
    colours = np.stack(np.meshgrid(*levels, indexing="ij")).astype(np.uint8)
    return colours.reshape(1, 3, len(levels[0]), -1)


def narrow_histograms() -> Batch:
    """Every range low .. high of levels, and images of few, many and unevenly filled levels."""
    rng = np.random.default_rng(5)
    images = []
    for _ in range(300):
        low, high = np.sort(rng.integers(0, 256, 2))
        images.append(rng.integers(low, high + 1, (1, 19, 27)))
    for _ in range(100):
        levels = rng.integers(0, 256, rng.integers(1, 6))
        images.append(rng.choice(levels, (1, 19, 27)))
    images.extend(np.clip(rng.exponential(rng.uniform(0.5, 40), (1, 19, 27)), 0, 255) for _ in range(50))
    return np.stack(images).astype(np.uint8)


def noises(count: int, channels: Sequence[int], sizes: Sequence[tuple[int, int]]) -> Iterator[Batch]:
    for shape in itertools.product(channels, sizes):
        yield np.random.default_rng(count).integers(0, 256, (count, shape[0], *shape[1]), dtype=np.uint8)


TINY = ((1, 1), (1, 5), (2, 2), (2, 7), (3, 3), (3, 5), (4, 130))
NARROW = ((1, 1), (1, 6), (2, 2), (3, 5), (5, 200))
SPECIAL: dict[str, Callable[[], Iterable[Batch]]] = {
    "all levels": lambda: [np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)],
    "all colours": lambda: (cube(range(red, red + 16), range(256), range(256)) for red in range(0, 256, 16)),
    "corners of the colour cube": lambda: [cube(*[(0, 1, 2, 127, 128, 254, 255)] * 3)],
    "every 5th level": lambda: [cube(*[range(0, 256, 5)] * 3)],  # floors of sums that lie at whole numbers included
    "narrow histograms": lambda: [narrow_histograms()],
    "tiny": lambda: noises(9, (1, 3), TINY),
    "tiny, coloured": lambda: noises(9, [3], TINY),
    "tiny, 2 pixels wide or more": lambda: noises(9, (1, 3), TINY[2:]),
    "narrow": lambda: noises(24, [3], NARROW),
}


# torchvision's functions with the arguments of ours -------------------------------------------------------------------


def blur(image: Tensor, sigma: float | None = None, *, kernel_size: int | tuple[int, int]) -> Tensor:
    size = [kernel_size] * 2 if isinstance(kernel_size, int) else list(kernel_size)
    return tv.gaussian_blur(image, size, None if sigma is None else [sigma, sigma])


def grey(image: Tensor) -> Tensor:
    return tv.rgb_to_grayscale(image, image.shape[0])


def noise(image: Tensor, mean: float, sigma: float) -> Tensor:
    return tv.gaussian_noise(image, mean, sigma)


def resize(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    return tv.resize(image, [size] * 2 if isinstance(size, int) else list(size), antialias=True)


def resized_crop(image: Tensor, *window: int, size: tuple[int, int]) -> Tensor:
    return tv.resized_crop(image, *window, list(size), InterpolationMode.BILINEAR, antialias=True)


def listed(fill: Any) -> Any:
    return list(fill) if isinstance(fill, tuple) else fill


def crop(image: Tensor, top: int, left: int, *, height: int, width: int, padding: Any, mode: str, fill: Any) -> Tensor:
    padded = tv.pad(image, sides(padding), listed(fill), "constant" if mode == "zero" else mode)
    return tv.crop(padded, top, left, height, width)


def sides(padding: Any) -> list[int]:
    """Left, top, right and bottom."""
    return [padding] * 4 if isinstance(padding, int) else list(padding) * (4 // len(padding))


def erase(image: Tensor, top: int, left: int, height: int, width: int, value: Any) -> Tensor:
    return tv.erase(image, top, left, height, width, torch.tensor(value, dtype=torch.uint8).view(-1, 1, 1))


def rotate(image: Tensor, degrees: float, interpolation: str, fill: Any) -> Tensor:
    return tv.rotate(image, degrees, InterpolationMode(interpolation), fill=listed(fill))


def affine(
    image: Tensor, degrees: float, x: float, y: float, scale: float, shear_x: float, shear_y: float,
    interpolation: str, fill: Any = None, center: Any = None,
) -> Tensor:  # fmt: skip
    mode = InterpolationMode(interpolation)
    return tv.affine(image, degrees, [x, y], scale, [shear_x, shear_y], mode, listed(fill), listed(center))


def perspective(image: Tensor, start: Any, end: Any, interpolation: str, fill: Any) -> Tensor:
    return tv.perspective(image, start, end, InterpolationMode(interpolation), listed(fill))


def by_coefficients(image: Tensor, k: list[float], *, interpolation: str, **none: None) -> Tensor:
    return tv.perspective(image, None, None, InterpolationMode(interpolation), None, k)


# Where each pixel of a warp comes from, by torchvision's own matrices in float64 --------------------------------------


def affine_source(value: Any, height: int, width: int, settings: dict[str, Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    degrees, x, y, scale, shear_x, shear_y = value
    center = settings.get("center")
    middle = [0.0, 0.0] if center is None else [center[0] - 0.5 * width, center[1] - 0.5 * height]
    matrix = _get_inverse_affine_matrix(middle, degrees, [float(x), float(y)], scale, [shear_x, shear_y])
    return affine_points(matrix, height, width)


def perspective_source(value: Any, height: int, width: int, _: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    return perspective_points(value[0] if len(value) == 1 else _get_perspective_coeffs(*value), height, width)


POINTS = {
    "affine": affine_source,
    "rotate": lambda value, *image: affine_source((-(value[0] % 360), 0, 0, 1.0, 0.0, 0.0), *image),
    "perspective": perspective_source,
}

# Values ---------------------------------------------------------------------------------------------------------------

NONE: list[Value] = [()]
FACTORS = (0.0, 0.1, 0.5, 0.73, 0.999, 1.0, 1.001, 1.19, 1.27, 1.5, 1.9, 2.0, 3.7)
SHIFTS = (-0.5, -0.37, -0.2, -0.1, -0.01, 0.0, 0.01, 0.1, 0.25, 1 / 3, 0.49, 0.5)
SIGMAS = (0.1, 0.3, 0.8, 1.4, 2.0, 5.0)
THRESHOLDS = (0.0, 0.5, 1.0, 77.0, 127.5, 128.0, 226.66667, 254.999, 255.0)
MEANS = (-1.0, -0.3, -0.0019, 0.0, 0.0021, 0.2, 0.5, 1.0)
ANGLES = (0.0, 30.0, -30.0, 45.0, 90.0, 180.0, 270.0, -90.0, 13.7, 123.4, 359.0, 400.0, -725.3, 1e-4)
SLOPES = np.concatenate([np.linspace(0, 0.3, 10), np.linspace(0, 0.99, 31)])  # those of the policies' tables
SHEARS = np.degrees(np.arctan(np.concatenate([SLOPES, -SLOPES]))).tolist()

SIMPLE = [  # degrees, shift in x and y, scale, shear in x and y; source coordinates tie
    (0.0, 0, 0, 1.0, 0.0, 0.0), (0.0, 3, -2, 1.0, 0.0, 0.0), (0.0, 0.5, 0.0, 1.0, 0.0, 0.0),
    (0.0, 0.3, -7.8, 1.0, 0.0, 0.0), (0.0, "width", 0, 1.0, 0.0, 0.0), (0.0, 0, 0, 0.5, 0.0, 0.0),
    (0.0, 0, 0, 2.0, 0.0, 0.0), (0.0, 0, 0, 1.25, 0.0, 0.0), (0.0, 0, 0, 1 / 3, 0.0, 0.0),
    (0.0, 0, 0, 1.0, 45.0, 0.0), (0.0, 0, 0, 1.0, 0.0, -26.56505117707799), (90.0, 0, 0, 1.0, 0.0, 0.0),
    (45.0, 0, 0, 2**0.5, 0.0, 0.0), (180.0, 0, 0, 1.0, 10.0, -5.0),
]  # fmt: skip


def affines(seed: int, times: int = 1, skip: int = 0, only: Sequence[int] | None = None) -> Draw:
    """The simple ones but for the first `skip`, then degrees, shifts, scale and shears as RandomAffine draws them."""

    def draw(count: int, height: int, width: int) -> list[Value]:
        rng = np.random.default_rng(seed)
        values: list[Value] = [tuple(width if v == "width" else v for v in value) for value in SIMPLE]
        total = skip + count * times if only is None else max(only) + 1
        while len(values) < total:
            degrees = float(rng.uniform(-180, 180))
            x, y = (int(rng.integers(-side // 2, side // 2)) for side in (width, height))
            scale = float(rng.uniform(0.4, 2.0))
            values.append((degrees, x, y, scale, float(rng.uniform(-50, 50)), float(rng.uniform(-50, 50))))
        return values[skip:total] if only is None else [values[k] for k in only]

    return draw


def quadrangles(seed: int, distortion: float, times: int = 1) -> Draw:
    """The image's corners, and where RandomPerspective would send them; at first the identity."""

    def draw(count: int, height: int, width: int) -> list[Value]:
        rng = np.random.default_rng(seed)
        bx, by = int(distortion * (width // 2)) + 1, int(distortion * (height // 2)) + 1
        right, bottom = width - 1, height - 1
        start = [[0, 0], [right, 0], [right, bottom], [0, bottom]]
        values: list[Value] = []
        for _ in range(count * times):
            x, y = rng.integers(0, bx, 4).tolist(), rng.integers(0, by, 4).tolist()
            end = [[x[0], y[0]], [right - x[1], y[1]], [right - x[2], bottom - y[2]], [x[3], bottom - y[3]]]
            values.append((start, end))
        values[0] = (start, start)
        return values

    return draw


def once(values: Iterable[Value]) -> Draw:
    """Each value with one image, instead of with all."""
    given = list(values)
    return lambda *_: given


def coefficients(count: int, height: int, width: int) -> list[Value]:
    size = np.array([0.2, 0.2, 3, 0.2, 0.2, 3, 2e-3, 2e-3])
    table = np.array([1.0, 0, 0, 0, 1.0, 0, 0, 0]) + np.random.default_rng(31).normal(0, 1, (count, 8)) * size
    return [(row,) for row in table.tolist()]


def rectangles(count: int, height: int, width: int) -> list[Value]:
    """Top, left, height and width, empty ones too; at first the whole image."""
    rng = np.random.default_rng(41)
    h, w = rng.integers(0, height + 1, count), rng.integers(0, width + 1, count)
    top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    return [(0, 0, height, width), *zip(*(v[1:].tolist() for v in (top, left, h, w)), strict=True)]


# The table ------------------------------------------------------------------------------------------------------------

COLOUR = (10.0, 200.0, 77.0)
FILLS = (None, 0.0, 131.0, COLOUR)
NEAREST, BILINEAR = {"interpolation": "nearest"}, {"interpolation": "bilinear"}
RULES = ((NEAREST, TIES), (BILINEAR, 1))
FILLED = [({**RULES[k % 2][0], "fill": fill}, RULES[k % 2][1]) for k, fill in enumerate(FILLS)]
CORNER = {**NEAREST, "center": (0.0, 0.0)}
LARGE, OTHERS = ["rgb 224"], [name for name in BATCHES if name != "rgb 224"]

BY_FACTOR = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "sharpness": tv.adjust_sharpness,
}
ROWS = [
    # op, torchvision's function, values, levels, least share, images, settings
    *(Row(op, adjust, FACTORS, 1, 0.95) for op, adjust in BY_FACTOR.items()),
    Row("hue", tv.adjust_hue, SHIFTS, 1, 0.95),
    Row("grayscale", grey, NONE, 1, 0.999),
    Row("invert", tv.invert, NONE, 0, on=[*BATCHES, "tiny"]),
    Row("autocontrast", tv.autocontrast, NONE, 0, on=[*BATCHES, "tiny", "narrow histograms"]),
    Row("equalize", tv.equalize, NONE, 0, on=[*BATCHES, "tiny", "narrow histograms"]),
    Row("horizontal_flip", tv.horizontal_flip, NONE, 0, on=[*BATCHES, "narrow"]),
    Row("vertical_flip", tv.vertical_flip, NONE, 0, on=[*BATCHES, "narrow"]),
    Row("posterize", tv.posterize, range(9), 0),
    Row("solarize", tv.solarize, THRESHOLDS, 0),
    *(Row("gaussian_blur", blur, SIGMAS, 1, 0.95, settings={"kernel_size": k}) for k in (3, 5, (7, 3), (1, 5), 9)),
    *(Row("erase", erase, rectangles, 0, settings={"value": value}) for value in ((0.0,), (255.0,), (131.0,), COLOUR)),
    *(Row("resize", resize, NONE, 1, on=SMALL, settings={"size": s}) for s in ((1, 2), 16, (20, 51), 64, (256, 3))),
    Row("gaussian_blur", blur, NONE, 1, on=["rgb 33x47"], settings={"kernel_size": (5, 3)}),
    Row("gaussian_noise", noise, MEANS, 0, on=["rgb 33x47"], settings={"sigma": 0.0}),  # every value is the mean
    # Warps
    *(Row("affine", affine, affines(3, 2), levels, 0.95, OTHERS, how) for how, levels in FILLED),
    *(Row("affine", affine, affines(3, only=(7, 12, 14, 15)), levels, 0.95, LARGE, how) for how, levels in FILLED),
    *(Row("affine", affine, affines(5, skip=6), levels, 0, SMALL, {**how, "center": center})
      for (how, levels), center in zip(RULES * 2, [(0.0, 0.0), (5.0, 9.5), (31.5, -4.0), (31.5, -4.0)], strict=True)),
    *(Row("affine", affine, affines(6, skip=14), levels, 0, ["rgb 32"], {**how, "fill": (10.7, 200.2, 77.5)})
      for how, levels in RULES),
    *(Row("affine", affine, affines(100 + seed, 4, 14), levels, 0, SMALL, {**how, "fill": FILLS[seed % 4]}, slow=True)
      for how, levels in RULES for seed in range(20)),
    # The one-sided warps of policies: shears about the corner, and whole shifts
    Row("affine", affine, once((0.0, 0, 0, 1.0, a, 0.0) for a in SHEARS), TIES, 0, SMALL, CORNER),
    Row("affine", affine, once((0.0, 0, 0, 1.0, 0.0, a) for a in SHEARS), TIES, 0, SMALL, CORNER),
    Row("affine", affine, once((0.0, x, 0, 1.0, 0.0, 0.0) for x in range(-34, 35)), TIES, 0, SMALL, NEAREST),
    Row("affine", affine, once((0.0, 0, y, 1.0, 0.0, 0.0) for y in range(-34, 35)), TIES, 0, SMALL, NEAREST),
    *(Row("rotate", rotate, once(ANGLES * 2), levels, 0, OTHERS, how) for how, levels in FILLED),
    *(Row("rotate", rotate, (30.0, 270.0, 13.7, -135.0), levels, 0, LARGE, how) for how, levels in FILLED),
    *(Row("perspective", perspective, quadrangles(23, distortion), levels, 0.95, settings=how)
      for (how, levels), distortion in zip(FILLED, (0.2, 0.2, 0.6, 0.6), strict=True)),
    *(Row("perspective", perspective, quadrangles(700 + seed, 0.1 + 0.08 * seed, 4), levels, 0.95,
          settings={**how, "fill": FILLS[seed % 4]}, slow=True) for how, levels in RULES for seed in range(10)),
    *(Row("perspective", by_coefficients, coefficients, levels, 0, SMALL,
          {**how, "startpoints": None, "endpoints": None}) for how, levels in RULES),
    # All levels and all colours, with values in fine steps
    Row("brightness", tv.adjust_brightness, np.linspace(0, 3, 301), 1, 0.9999, ["all levels"]),
    Row("contrast", tv.adjust_contrast, np.linspace(0, 3, 301), 1, 0.999, ["all levels"]),
    Row("solarize", tv.solarize, np.linspace(0, 255, 511), 0, on=["all levels"]),
    Row("posterize", tv.posterize, range(9), 0, on=["all levels"]),
    Row("grayscale", grey, NONE, 1, 0.999, ["every 5th level"]),
    Row("saturation", tv.adjust_saturation, (0.0, 0.6, 1.8), 1, on=["every 5th level"]),
    Row("hue", tv.adjust_hue, np.linspace(-0.5, 0.5, 25), 1, on=["corners of the colour cube"]),
    Row("hue", tv.adjust_hue, (-0.31, 0.02, 0.5), 1, on=["all colours"], slow=True),
    Row("hue", tv.adjust_hue, [*SHIFTS, *np.linspace(-0.5, 0.5, 41)], 1, slow=True),
    *(Row(op, adjust, [*FACTORS, *np.linspace(0, 3, 61)], 1, slow=True) for op, adjust in BY_FACTOR.items()),
    # Tiny and narrow images
    *(Row(op, adjust, [1.7], 1, on=["tiny"]) for op, adjust in BY_FACTOR.items()),
    Row("hue", tv.adjust_hue, [0.3], 1, on=["tiny, coloured"]),
    Row("gaussian_blur", blur, [1.0], 1, on=["tiny, 2 pixels wide or more"], settings={"kernel_size": 3}),
    Row("resize", resize, NONE, 1, on=["narrow"], settings={"size": (9, 4)}),
    *(Row("affine", affine, affines(4), levels, 0, ["narrow"], how) for how, levels in RULES),
]  # fmt: skip


def case(row: Row, name: str) -> Any:
    how = " ".join(f"{value}" for value in row.settings.values() if value is not None)
    return pytest.param(row, name, id=f"{row.op} {how} on {name}", marks=[pytest.mark.slow] * row.slow)


@pytest.mark.parametrize(("row", "name"), [case(row, name) for row in ROWS for name in row.on])
def test_as_torchvision(row: Row, name: str, executor: str) -> None:
    for images in SPECIAL[name]() if name in SPECIAL else [batch(name)]:
        compare(row, images, executor)


# Windows, whose sizes go with the image's -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(
    ("padding", "mode"),
    [(0, "zero"), (4, "reflect"), ((3, 7), "edge"), ((1, 2, 5, 8), "zero"), ((1, 2, 5, 8), "reflect")],
)
def test_crop(padding: Any, mode: str, name: str, executor: str) -> None:
    images = batch(name)
    n, _, h, w = images.shape
    left, top, right, bottom = sides(padding)
    rng = np.random.default_rng(11)
    for height, width, fill in ((h, w, 0.0), (h // 2, w - 1, COLOUR if mode == "zero" else 9.0)):
        most = h + top + bottom - height, w + left + right - width
        places = np.stack([rng.integers(0, m + 1, n) for m in most], 1)
        places[:2] = (0, 0), most
        settings = {"height": height, "width": width, "padding": padding, "mode": mode, "fill": fill}
        compare(Row("crop", crop, once(map(tuple, places.tolist())), 0, settings=settings), images, executor)


@pytest.mark.parametrize("name", BATCHES)
def test_resized_crop(name: str, executor: str) -> None:
    images = batch(name)
    n, _, h, w = images.shape
    rng = np.random.default_rng(17)
    for size in ((h, w), (h // 2, w + 9), (7, 5), (2 * h + 1, w)) if name != "rgb 224" else ((224, 224), (96, 64)):
        height, width = rng.integers(1, h + 1, n), rng.integers(1, w + 1, n)
        height[:3], width[:3] = (h, h, min(size[0], h)), (w, 1, min(size[1], w))
        top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
        places = np.stack([top, left, height, width], 1)
        row = Row("resized_crop", resized_crop, once(map(tuple, places.tolist())), 1, 0.95, settings={"size": size})
        compare(row, images, executor)


def test_crop_reflects_up_to_the_far_edge(executor: str) -> None:
    """Padding of the whole side less one, the most that reflection allows."""
    for mode in ("reflect", "edge"):
        settings = {"height": 7, "width": 13, "padding": (4, 2, 4, 2), "mode": mode, "fill": 0}
        compare(Row("crop", crop, [(0, 0)], 0, settings=settings), batch("rgb 3x5"), executor)


def test_fill_of_a_padding(executor: str) -> None:
    """torchvision truncates it, and rounds a warp's; none is black."""
    settings = {"height": 40, "width": 40, "padding": 4, "mode": "zero", "fill": (10.7, 200.2, 77.5)}
    compare(Row("crop", crop, [(0, 0)], 0, settings=settings), batch("rgb 32"), executor)
    black, none = (F.crop(batch("rgb 32"), 0, 0, 40, 40, 4, "zero", fill, executor=executor) for fill in (0, None))
    assert (none == black).all()


# No comparisons -------------------------------------------------------------------------------------------------------


def test_a_coordinate_of_almost_zero_is_inside(executor: str) -> None:
    """Rounding puts the source of the corner at -1e-8: the edge pixel keeps its colour, whatever the fill."""
    image = np.full((1, 1, 28, 28), 50, np.uint8)
    start, end = [[0, 0], [27, 0], [27, 27], [0, 27]], [[0, 0], [26, 1], [27, 27], [2, 25]]
    for interpolation in ("nearest", "bilinear"):
        mine = F.perspective(image, start, end, interpolation=interpolation, fill=200, executor=executor)
        assert abs(int(mine[0, 0, 0, 0]) - 50) <= 1


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_noise_is_normal(sigma: float, executor: str) -> None:
    """On mid-grey: the levels added follow a truncated normal, independent of place, channel and key."""
    images = np.full((16, 3, 64, 64), 128, np.uint8)
    noise = F.gaussian_noise(images, sigma, key=np.arange(16), executor=executor).astype(int) - 128
    edges = np.arange(-100, 101)
    scale = 255 * sigma
    # Truncation towards zero: level k > 0 holds [k, k + 1), k < 0 holds (k - 1, k], 0 holds (-1, 1).
    upper = np.where(edges < 0, edges, edges + 1) / scale
    lower = np.where(edges > 0, edges, edges - 1) / scale
    share = stats.norm.cdf(upper) - stats.norm.cdf(lower)
    expected, seen = share * noise.size, np.array([(noise == k).sum() for k in edges])
    keep = expected >= 10
    pooled = stats.chisquare(
        np.append(seen[keep], noise.size - seen[keep].sum()),
        np.append(expected[keep], noise.size - expected[keep].sum()),
    )
    assert pooled.pvalue > 1e-4, f"chi-square of the noise levels: p = {pooled.pvalue:.2g}"
    flat = noise.astype(float)
    neighbours = {
        "column": (flat[..., 1:], flat[..., :-1]),
        "row": (flat[..., 1:, :], flat[..., :-1, :]),
        "channel": (flat[:, 1:], flat[:, :-1]),
        "key": (flat[1:], flat[:-1]),
    }
    for which, (a, b) in neighbours.items():
        r = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert abs(r) < 4 / np.sqrt(a.size), f"noise of neighbouring {which}s correlates: {r:.4f}"


def test_salt_and_pepper_hits_the_share_it_says(executor: str) -> None:
    images = np.random.default_rng(2).integers(1, 255, (20, 3, 80, 90), dtype=np.uint8)
    amounts, salts = np.linspace(0, 1, 20), np.tile([0.0, 0.25, 0.5, 1.0], 5)
    out = F.salt_and_pepper(images, amounts, salts, key=np.arange(20) * 977, executor=executor)
    hit = (out != images).all(1)
    np.testing.assert_array_equal(hit, (out != images).any(1))  # a pixel is hit in all channels or in none
    np.testing.assert_array_equal(out[:, 0][hit], out[:, 2][hit])
    assert set(np.unique(out[:, 1][hit])) <= {0, 255}
    for i in range(20):
        count, pixels = int(hit[i].sum()), hit[i].size
        if amounts[i] in (0, 1):
            assert count == amounts[i] * pixels
        else:
            assert stats.binomtest(count, pixels, amounts[i]).pvalue > 1e-4, f"{count} of {pixels} at {amounts[i]}"
        white = int((out[i, 0][hit[i]] == 255).sum())
        if count:
            assert stats.binomtest(white, count, salts[i]).pvalue > 1e-4
