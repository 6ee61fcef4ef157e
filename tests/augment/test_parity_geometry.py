"""Flips, crops, warps and resizing against torchvision 0.29 v2 on uint8 tensors, with the same parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
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
    covering,
    one_by_one,
    perspective_points,
    spread,
)
from tests.augment.parity import one_thread as one_thread

pytestmark = [pytest.mark.parametrize("executor", EXECUTORS)]
every = pytest.mark.parametrize("name", BATCHES)
small = pytest.mark.parametrize("name", SMALL)

ANGLES = (0.0, 30.0, -30.0, 45.0, 90.0, 180.0, 270.0, -90.0, 13.7, 123.4, 359.0, 400.0, -725.3, 1e-4)
FILLS = {"none": None, "zero": 0.0, "level": 131.0, "colour": (10.0, 200.0, 77.0)}


def fill_of(kind: str, channels: int) -> Any:
    fill = FILLS[kind]
    return fill[:channels] if isinstance(fill, tuple) else fill


def tv_fill(fill: Any) -> Any:
    return list(fill) if isinstance(fill, tuple) else fill


@every
def test_flips(name: str, executor: str) -> None:
    images = batch(name)
    for op in ("horizontal_flip", "vertical_flip"):
        reference = one_by_one(getattr(tv, op), images, [()] * len(images))
        check(getattr(F, op)(images, executor=executor), reference, 0, op)


# Crops ----------------------------------------------------------------------------------------------------------------


@every
@covering("padding, mode", [0, 4, (3, 7), (1, 2, 5, 8), (1, 2, 5, 8)], ["zero", "reflect", "edge"])
def test_crop(padding: Any, mode: str, name: str, executor: str) -> None:
    images = batch(name)
    n, c, h, w = images.shape
    sides = (
        [padding] * 4 if isinstance(padding, int) else list(padding) * (4 // len(padding))
    )  # left, top, right, bottom
    rng = np.random.default_rng(11)
    for height, width, fill in ((h, w, 0.0), (h // 2, w - 1, fill_of("colour", c) if mode == "zero" else 9.0)):
        top = rng.integers(0, h + sides[1] + sides[3] - height + 1, n)
        left = rng.integers(0, w + sides[0] + sides[2] - width + 1, n)
        top[0], left[0] = 0, 0
        top[1], left[1] = h + sides[1] + sides[3] - height, w + sides[0] + sides[2] - width

        def theirs(image: torch.Tensor, t: int, s: int, size: Any = (height, width), fill: Any = fill) -> torch.Tensor:
            padded = tv.pad(image, sides, tv_fill(fill), "constant" if mode == "zero" else mode)
            return tv.crop(padded, t, s, *size)

        reference = one_by_one(theirs, images, list(zip(top.tolist(), left.tolist(), strict=True)))
        mine = F.crop(images, top, left, height, width, padding, mode, fill, executor=executor)
        check(mine, reference, 0, f"crop {padding} {mode} on {name}")


def test_crop_reflects_up_to_the_far_edge(executor: str) -> None:
    """Padding of the whole side less one, the most that reflection allows."""
    images = batch("rgb 3x5")
    for mode in ("reflect", "edge"):
        reference = one_by_one(lambda x, mode=mode: tv.pad(x, [4, 2, 4, 2], 0, mode), images, [()] * len(images))
        mine = F.crop(images, 0, 0, 7, 13, (4, 2, 4, 2), mode, executor=executor)
        check(mine, reference, 0, mode)


# Resizing -------------------------------------------------------------------------------------------------------------


@every
def test_resized_crop(name: str, executor: str) -> None:
    images = batch(name)
    n, _, h, w = images.shape
    rng = np.random.default_rng(17)
    for size in ((h, w), (h // 2, w + 9), (7, 5), (2 * h + 1, w)) if name != "rgb 224" else ((224, 224), (96, 64)):
        height, width = rng.integers(1, h + 1, n), rng.integers(1, w + 1, n)
        height[:3], width[:3] = (h, h, size[0] if size[0] <= h else h), (w, 1, size[1] if size[1] <= w else w)
        top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)

        def theirs(image: torch.Tensor, *window: int, size: tuple[int, int] = size) -> torch.Tensor:
            return tv.resized_crop(image, *window, list(size), InterpolationMode.BILINEAR, antialias=True)

        windows = np.stack([top, left, height, width], 1).tolist()
        reference = one_by_one(theirs, images, windows)
        mine = F.resized_crop(images, top, left, height, width, size, executor=executor)
        share = check(mine, reference, 1, f"resized_crop to {size} on {name}")
        assert share > 0.95, f"resized_crop to {size}: only {share:.3%} of the values equal torchvision's"


@small
@pytest.mark.parametrize("size", [(1, 2), 16, (20, 51), 64, (256, 3)])  # torchvision itself fails at 1 x 1
def test_resize(size: Any, name: str, executor: str) -> None:
    images = batch(name)
    pair = [size, size] if isinstance(size, int) else list(size)
    mode = InterpolationMode.BILINEAR
    reference = one_by_one(lambda x: tv.resize(x, pair, mode, antialias=True), images, [()] * len(images))
    check(F.resize(images, size, executor=executor), reference, 1, f"resize to {size} on {name}")


# Warps ----------------------------------------------------------------------------------------------------------------


def affine_case(height: int, width: int, count: int, seed: int) -> list[dict[str, Any]]:
    """Parameters as RandomAffine draws them, and simple ones whose source coordinates tie."""
    rng = np.random.default_rng(seed)
    simple: list[dict[str, Any]] = [
        {},
        {"translate": (3, -2)},
        {"translate": (0.5, 0.0)},
        {"translate": (0.3, -7.8)},
        {"translate": (width, 0)},
        {"scale": 0.5},
        {"scale": 2.0},
        {"scale": 1.25},
        {"scale": 1 / 3},
        {"shear": (45.0, 0.0)},
        {"shear": (0.0, -26.56505117707799)},
        {"angle": 90.0},
        {"angle": 45.0, "scale": 2**0.5},
        {"angle": 180.0, "shear": (10.0, -5.0)},
    ]
    while len(simple) < count:
        simple.append(
            {
                "angle": float(rng.uniform(-180, 180)),
                "translate": (int(rng.integers(-width // 2, width // 2)), int(rng.integers(-height // 2, height // 2))),
                "scale": float(rng.uniform(0.4, 2.0)),
                "shear": (float(rng.uniform(-50, 50)), float(rng.uniform(-50, 50))),
            }
        )
    default = {"angle": 0.0, "translate": (0, 0), "scale": 1.0, "shear": (0.0, 0.0)}
    return [{**default, **case} for case in simple[:count]]


def matrix_of(case: dict[str, Any], size: tuple[int, int], center: Any = None) -> list[float]:
    """torchvision's own inverse matrix, in float64."""
    height, width = size
    middle = [0.0, 0.0] if center is None else [center[0] - 0.5 * width, center[1] - 0.5 * height]
    shift = [float(t) for t in case["translate"]]
    return list(_get_inverse_affine_matrix(middle, case["angle"], shift, case["scale"], list(case["shear"])))


Case = dict[str, Any]


def affine_ours(images: Batch, cases: list[Case], interpolation: str, fill: Any, center: Any, executor: str) -> Any:
    return F.affine(
        images,
        np.array([c["angle"] for c in cases]),
        np.array([c["translate"][0] for c in cases]),
        np.array([c["translate"][1] for c in cases]),
        np.array([c["scale"] for c in cases]),
        np.array([c["shear"][0] for c in cases]),
        np.array([c["shear"][1] for c in cases]),
        interpolation,
        fill,
        center,
        executor=executor,
    )


def affine_theirs(images: Batch, cases: list[dict[str, Any]], interpolation: str, fill: Any, center: Any) -> Batch:
    mode = InterpolationMode(interpolation)

    def one(image: torch.Tensor, case: dict[str, Any]) -> torch.Tensor:
        shift, shear, where = list(case["translate"]), list(case["shear"]), None if center is None else list(center)
        return tv.affine(image, case["angle"], shift, case["scale"], shear, mode, tv_fill(fill), where)

    return one_by_one(one, images, [(c,) for c in cases])


def check_affine(images: Batch, cases: list[Case], interpolation: str, fill: Any, center: Any, executor: str) -> float:
    mine = affine_ours(images, cases, interpolation, fill, center, executor)
    reference = affine_theirs(images, cases, interpolation, fill, center)
    if interpolation == "bilinear":
        return check(mine, reference, 1, f"affine bilinear, fill {fill}, {executor}")
    size = images.shape[2], images.shape[3]
    shares = []
    for i, case in enumerate(cases):
        points = affine_points(matrix_of(case, size, center), *size)
        what = f"affine nearest, fill {fill}, {executor}, {case}"
        shares.append(check_nearest(images[i], mine[i], reference[i], points, fill, what))
    return float(np.mean(shares))


@every
@covering("interpolation, fill", ["nearest", "bilinear"], FILLS)
def test_affine(interpolation: str, fill: str, name: str, executor: str) -> None:
    images = batch(name)
    if name == "rgb 224":
        cases = [affine_case(224, 224, 26, 3)[i] for i in (7, 12, 14, 15)]
    else:
        images = np.concatenate([images, images])
        cases = affine_case(images.shape[2], images.shape[3], len(images), 3)
    share = check_affine(images, cases, interpolation, fill_of(fill, images.shape[1]), None, executor)
    assert share > 0.95, f"affine {interpolation}: only {share:.3%} equal torchvision's"


@small
@covering("center, interpolation", [(0.0, 0.0), (5.0, 9.5), (31.5, -4.0), (31.5, -4.0)], ["nearest", "bilinear"])
def test_affine_about_a_point(center: tuple[float, float], interpolation: str, name: str, executor: str) -> None:
    images = batch(name)
    cases = affine_case(images.shape[2], images.shape[3], len(images) + 6, 5)[6:]
    check_affine(images, cases, interpolation, None, center, executor)


@pytest.mark.slow
@small
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_affine_with_more_draws(interpolation: str, seed: int, name: str, executor: str) -> None:
    images = np.concatenate([batch(name)] * 4)
    cases = affine_case(images.shape[2], images.shape[3], len(images) + 14, 100 + seed)[14:]
    check_affine(images, cases, interpolation, fill_of(list(FILLS)[seed % 4], images.shape[1]), None, executor)


@small
@pytest.mark.parametrize("kind", ["shear_x", "shear_y", "translate_x", "translate_y"])
def test_one_sided_warps(kind: str, name: str, executor: str) -> None:
    """Shears about the corner and whole shifts, as policies have them; every slope of their tables."""
    images = batch(name)
    if kind.startswith("shear"):
        slopes = np.concatenate([np.linspace(0, 0.3, 10), np.linspace(0, 0.99, 31)])
        angles = np.degrees(np.arctan(np.concatenate([slopes, -slopes])))
        values: list[Any] = [{"shear": (a, 0.0) if kind == "shear_x" else (0.0, a)} for a in angles.tolist()]
        center: Any = (0.0, 0.0)
    else:
        values = [{"translate": (t, 0) if kind == "translate_x" else (0, t)} for t in range(-34, 35)]
        center = None
    default = {"angle": 0.0, "translate": (0, 0), "scale": 1.0, "shear": (0.0, 0.0)}
    cases = [{**default, **v} for v in values]
    many = np.concatenate([images] * 7)[: len(cases)]
    check_affine(many, cases[: len(many)], "nearest", None, center, executor)


@every
@covering("interpolation, fill", ["nearest", "bilinear"], FILLS)
def test_rotate(interpolation: str, fill: str, name: str, executor: str) -> None:
    images = batch(name)
    n, c, height, width = images.shape
    level = fill_of(fill, c)
    angles = spread(ANGLES, n) if name != "rgb 224" else [30.0, 270.0, 13.7, -135.0]
    mine = F.rotate(images, np.array(angles), interpolation, level, executor=executor)
    mode = InterpolationMode(interpolation)
    reference = one_by_one(lambda x, a: tv.rotate(x, a, mode, fill=tv_fill(level)), images, [(a,) for a in angles])
    if interpolation == "bilinear":
        check(mine, reference, 1, f"rotate bilinear, fill {level}, {executor}")
        return
    for i, angle in enumerate(angles):
        matrix = _get_inverse_affine_matrix([0.0, 0.0], -(angle % 360), [0.0, 0.0], 1.0, [0.0, 0.0])
        points = affine_points(matrix, height, width)
        check_nearest(
            images[i], mine[i], reference[i], points, level, f"rotate {angle} nearest, fill {level}, {executor}"
        )


def test_a_quarter_turn_goes_counter_clockwise(executor: str) -> None:
    """Not by comparison: the upper right corner comes to the upper left."""
    image = np.zeros((1, 3, 8, 8), np.uint8)
    image[0, :, 0, 7] = 255
    for interpolation in ("nearest", "bilinear"):
        turned = F.rotate(image, 90, interpolation, executor=executor)
        assert turned[0, 0, 0, 0] == 255
        assert turned.sum() == 3 * 255
    shifted = F.affine(image, translate_x=-3, translate_y=2, executor=executor)
    assert shifted[0, 1, 2, 4] == 255


def corners(height: int, width: int, count: int, seed: int, distortion: float) -> list[list[list[int]]]:
    """Endpoints as RandomPerspective draws them."""
    rng = np.random.default_rng(seed)
    bx, by = int(distortion * (width // 2)) + 1, int(distortion * (height // 2)) + 1
    out = []
    for _ in range(count):
        x, y = rng.integers(0, bx, 4), rng.integers(0, by, 4)
        out.append(
            [
                [int(x[0]), int(y[0])],
                [int(width - 1 - x[1]), int(y[1])],
                [int(width - 1 - x[2]), int(height - 1 - y[2])],
                [int(x[3]), int(height - 1 - y[3])],
            ]
        )
    return out


@every
@covering("distortion, interpolation, fill", [0.2, 0.2, 0.6, 0.6], ["nearest", "bilinear"], FILLS)
def test_perspective(distortion: float, interpolation: str, fill: str, name: str, executor: str) -> None:
    check_perspective(batch(name), distortion, interpolation, fill, executor, 23)


@pytest.mark.slow
@every
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_perspective_with_more_draws(interpolation: str, seed: int, name: str, executor: str) -> None:
    images = np.concatenate([batch(name)] * 4)
    check_perspective(images, 0.1 + 0.08 * seed, interpolation, list(FILLS)[seed % 4], executor, 700 + seed)


def check_perspective(
    images: Batch, distortion: float, interpolation: str, fill: str, executor: str, seed: int
) -> None:
    n, c, height, width = images.shape
    start = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    ends = corners(height, width, n, seed, distortion)
    ends[0] = start  # the identity
    level, mode = fill_of(fill, c), InterpolationMode(interpolation)
    mine = F.perspective(images, start, ends, interpolation=interpolation, fill=level, executor=executor)
    reference = one_by_one(
        lambda x, end: tv.perspective(x, start, end, mode, tv_fill(level)), images, [(e,) for e in ends]
    )
    if interpolation == "bilinear":
        share = check(mine, reference, 1, f"perspective bilinear, fill {level}, {executor}")
        assert share > 0.95, f"perspective: only {share:.3%} of the values equal torchvision's"
        return
    for i, end in enumerate(ends):
        points = perspective_points(_get_perspective_coeffs(start, end), height, width)
        what = f"perspective {end} nearest, fill {level}, {executor}"
        check_nearest(images[i], mine[i], reference[i], points, level, what)


@small
def test_perspective_by_coefficients(name: str, executor: str) -> None:
    images = batch(name)
    n, _, height, width = images.shape
    rng = np.random.default_rng(31)
    size = np.array([0.2, 0.2, 3, 0.2, 0.2, 3, 2e-3, 2e-3])
    table = np.array([1.0, 0, 0, 0, 1.0, 0, 0, 0]) + rng.normal(0, 1, (n, 8)) * size
    for interpolation in ("nearest", "bilinear"):
        mine = F.perspective(images, coefficients=table, interpolation=interpolation, executor=executor)
        mode = InterpolationMode(interpolation)
        reference = one_by_one(
            lambda x, k, mode=mode: tv.perspective(x, None, None, mode, None, k), images, [(k,) for k in table.tolist()]
        )
        if interpolation == "bilinear":
            check(mine, reference, 1, f"perspective bilinear, {executor}")
        else:
            for i in range(n):
                points = perspective_points(table[i], height, width)
                check_nearest(images[i], mine[i], reference[i], points, None, f"perspective {table[i]}, {executor}")


def test_a_coordinate_of_almost_zero_is_inside(executor: str) -> None:
    """Rounding puts the source of the corner at -1e-8: the edge pixel keeps its colour, whatever the fill."""
    image = np.full((1, 1, 28, 28), 50, np.uint8)
    start, end = [[0, 0], [27, 0], [27, 27], [0, 27]], [[0, 0], [26, 1], [27, 27], [2, 25]]
    for interpolation in ("nearest", "bilinear"):
        mine = F.perspective(image, start, end, interpolation=interpolation, fill=200, executor=executor)
        assert abs(int(mine[0, 0, 0, 0]) - 50) <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (3, 5), (5, 200)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_tiny_and_narrow_images(interpolation: str, size: tuple[int, int], executor: str) -> None:
    images = np.random.default_rng(9).integers(0, 256, (24, 3, *size), dtype=np.uint8)
    check_affine(images, affine_case(*size, 24, 4), interpolation, None, None, executor)
    for op in ("horizontal_flip", "vertical_flip"):
        check(getattr(F, op)(images, executor=executor), one_by_one(getattr(tv, op), images, [()] * 24), 0, op)
    reference = one_by_one(lambda x: tv.resize(x, [9, 4], antialias=True), images, [()] * 24)
    check(F.resize(images, (9, 4), executor=executor), reference, 1, "resize")


def test_fractional_fill(executor: str) -> None:
    """torchvision rounds a warp's fill to the nearest level, and truncates a padding's."""
    images = batch("rgb 32")
    fill = (10.7, 200.2, 77.5)
    for interpolation in ("nearest", "bilinear"):
        check_affine(images, affine_case(32, 32, len(images) + 14, 6)[14:], interpolation, fill, None, executor)
    reference = one_by_one(lambda x: tv.pad(x, [4, 4, 4, 4], list(fill)), images, [()] * len(images))
    check(F.crop(images, 0, 0, 40, 40, 4, "zero", fill, executor=executor), reference, 0, "padding")


def test_a_crop_without_fill_is_black(executor: str) -> None:
    images = batch("rgb 32")
    black = F.crop(images, 0, 0, 40, 40, 4, "zero", 0, executor=executor)
    assert (F.crop(images, 0, 0, 40, 40, 4, "zero", None, executor=executor) == black).all()
