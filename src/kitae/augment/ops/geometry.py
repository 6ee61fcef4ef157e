"""Ops that move pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from kitae.augment.ops.base import (
    AFFINE_BILINEAR,
    AFFINE_NEAREST,
    CROP,
    HFLIP,
    MODES,
    PERSPECTIVE_BILINEAR,
    PERSPECTIVE_NEAREST,
    RESIZED_CROP,
    VFLIP,
    Degrees,
    Fill,
    FillLevels,
    Interpolation,
    Levels,
    Lines,
    Op,
    Probability,
    Ratio,
    Share,
    Site,
    Size,
    Step,
    below,
    between,
    checked,
    draw,
    fills,
    in_order,
    rising,
    rounded,
    span,
    unit,
)
from kitae.errors import AugmentError
from kitae.keyed import philox

Border = Annotated[int, Field(ge=0, le=2**15)]


def _shears(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(in_order(value[at : at + 2], -89.0, 89.0) for at in range(0, len(value), 2))
    return in_order(value, 0.0, 89.0)


Shear = Annotated[
    float | tuple[float, float] | tuple[float, float, float, float] | None,
    checked(_shears, "a number in [0, 89], or one or two rising pairs in [-89, 89]"),
]


def write_affine(
    args: Any, at: int, angle: Any, tx: Any, ty: Any, scale: Any, sx: Any, sy: Any, cx: Any, cy: Any
) -> None:
    """The inverse of translate . centre . rotate . scale . shear . -centre, six numbers from args[at].

    angle, sx and sy in radians; tx and ty in pixels; (cx, cy) relative to the image's centre. The matrix maps an output
    pixel to where its colour comes from, both measured from the centre of the image.
    """
    cos_sy = math.cos(sy)
    tan_sx = math.tan(sx)
    a = math.cos(angle - sy) / cos_sy
    b = -(a * tan_sx + math.sin(angle))
    c = math.sin(angle - sy) / cos_sy
    d = math.cos(angle) - c * tan_sx
    m0 = d / scale
    m1 = -b / scale
    m3 = -c / scale
    m4 = a / scale
    args[at] = m0
    args[at + 1] = m1
    args[at + 2] = cx - m0 * (cx + tx) - m1 * (cy + ty)
    args[at + 3] = m3
    args[at + 4] = m4
    args[at + 5] = cy - m3 * (cx + tx) - m4 * (cy + ty)


def write_perspective(args: Any, at: int, x0: Any, y0: Any, x1: Any, y1: Any, x2: Any, y2: Any, x3: Any, y3: Any,
                      w: Any, h: Any) -> None:  # fmt: skip
    """Coefficients that map the quadrangle (x0, y0) .. (x3, y3), clockwise from the top left, to (0, 0) .. (w, h).

    The projective map from the unit square to a quadrangle in closed form (Heckbert, "Fundamentals of texture mapping
    and image warping", 1989, section 2.2.3), inverted and scaled.
    """
    dx1 = x1 - x2
    dx2 = x3 - x2
    dx3 = x0 - x1 + x2 - x3
    dy1 = y1 - y2
    dy2 = y3 - y2
    dy3 = y0 - y1 + y2 - y3
    det = dx1 * dy2 - dx2 * dy1
    g = (dx3 * dy2 - dx2 * dy3) / det
    k = (dx1 * dy3 - dx3 * dy1) / det
    a = x1 - x0 + g * x1
    b = x3 - x0 + k * x3
    d = y1 - y0 + g * y1
    e = y3 - y0 + k * y3
    # The adjugate of [[a, b, x0], [d, e, y0], [g, k, 1]], its rows times (w, h, 1), divided by its last entry.
    last = a * e - b * d
    args[at] = (e - y0 * k) * w / last
    args[at + 1] = (x0 * k - b) * w / last
    args[at + 2] = (b * y0 - x0 * e) * w / last
    args[at + 3] = (y0 * g - d) * h / last
    args[at + 4] = (a - x0 * g) * h / last
    args[at + 5] = (x0 * d - a * y0) * h / last
    args[at + 6] = (d * k - e * g) / last
    args[at + 7] = (b * g - a * k) / last


def warp_numbers(nearest: int, interpolation: Interpolation, fill: Fill) -> list[float]:
    """What `start_warp` reads: the code of the step, and its fill."""
    return [nearest + (interpolation == "bilinear"), *fills(fill)]


def start_warp(numbers: Any, codes: Any, args: Any, step: Any, at: Any) -> None:
    """The code of a warp, and its fill from args[at]; `numbers` begin with what `warp_numbers` gives."""
    codes[step] = np.int64(numbers[0])
    for i in range(3):
        args[at + i] = numbers[1 + i]


def _shift(right: float, down: float) -> str:
    """A shift in words; empty where it is less than half a pixel."""
    sides = ((round(right), "right", "left"), (round(down), "down", "up"))
    return ", ".join(f"{plus if by > 0 else minus} {abs(by)}" for by, plus, minus in sides if by)


def _motion(a: Sequence[float]) -> Lines:
    """An affine step in words, from its inverse matrix about the centre."""
    m0, m1, m2, m3, m4, m5 = a[:6]
    if m0 == m4 == 1.0 and (m1 == 0.0) != (m3 == 0.0):
        return (f"shear x {m1:+.2f}" if m3 == 0.0 else f"shear y {m3:+.2f}",)
    det = m0 * m4 - m1 * m3
    shift = _shift((m1 * m5 - m4 * m2) / det, (m3 * m2 - m0 * m5) / det)  # where the centre goes
    if abs(m0 - m4) > 1e-9 or abs(m1 + m3) > 1e-9:
        first = f"from [{m0:.2f} {m1:.2f}; {m3:.2f} {m4:.2f}]"
    else:
        angle, scale = -math.degrees(math.atan2(m1, m0)), 1.0 / math.sqrt(det)  # counter-clockwise
        turn = f"turn {angle:+.0f}°" if abs(angle) >= 0.5 else ""
        size = f"scale {scale:.2f}" if abs(scale - 1.0) >= 0.005 else ""
        first = f"{angle:+.0f}°, {size}" if turn and size else turn or size
    return tuple(line for line in (first, shift) if line) or ("not moved",)


def _window(a: Sequence[float]) -> Lines:
    return f"crop {a[2]:.0f} x {a[3]:.0f}", f"at ({a[0]:.0f}, {a[1]:.0f})"


AFFINE_STEPS = (
    Step(AFFINE_NEAREST, "warp.affine_nearest", _motion),
    Step(AFFINE_BILINEAR, "warp.affine_bilinear", _motion),
)


class HorizontalFlip(Op):
    """Mirrors left and right. torchvision RandomHorizontalFlip.

    alternate: mirror each sample in every second epoch. Only the first such epoch is random, so any two consecutive
        epochs show both views (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.6). Leave p
        at 0.5 then.
    """

    name = "horizontal_flip"
    writes = (Step(HFLIP, "move.horizontal_flip", takes=()),)
    p: Probability = 0.5
    alternate: bool = False

    @model_validator(mode="after")
    def _half(self) -> Self:
        if self.alternate and self.p != 0.5:
            raise ValueError(f"p must be 0.5 with alternate: true, not {self.p}")
        return self

    def numbers(self, site: Site) -> list[float]:
        return [self.p, float(self.alternate)]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        if numbers[1] == 0:
            w0, _, _, _ = draw(key, 0)
            if unit(w0) < numbers[0]:
                codes[0] = HFLIP
        else:  # the draw of a sample, whatever the epoch, and then the epoch's parity
            w0, _, _, _ = philox(key[0], key[1], np.uint64(0), key[3], key[4], key[5])
            if (w0 ^ key[2]) & np.uint64(1) == np.uint64(1):
                codes[0] = HFLIP


class VerticalFlip(Op):
    """Mirrors top and bottom. torchvision RandomVerticalFlip."""

    name = "vertical_flip"
    writes = (Step(VFLIP, "move.vertical_flip", takes=()),)
    p: Probability = 0.5


class Rotate(Op):
    """Turns counter-clockwise about the centre by an angle uniform in `degrees`. torchvision RandomRotation.

    degrees: a number d stands for (-d, d).
    interpolation: how levels between pixels are found: that of the nearest pixel, or bilinear.
    fill: level of what comes from outside (a number or one per channel). With bilinear, the border is blended with
        black, and with a level then once more with that, as torchvision does.
    """

    name = "rotate"
    shows: ClassVar = {"degrees": (30.0, 30.0)}
    writes = AFFINE_STEPS
    degrees: Degrees = 15.0
    p: Probability = 1.0
    interpolation: Interpolation = "nearest"
    fill: FillLevels = 0.0

    def numbers(self, site: Site) -> list[float]:
        low, high, _ = span(self.degrees, 0.0, -math.inf)
        return [*warp_numbers(AFFINE_NEAREST, self.interpolation, self.fill), self.p, low, high]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, _, _ = draw(key, 0)
        if unit(w0) < numbers[4]:
            start_warp(numbers, codes, args, 0, 6)
            write_affine(args, 0, -math.radians(between(w1, numbers[5], numbers[6])), 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)


class _Crop(Op):
    size: Size | tuple[Size, Size] | None = None

    def result(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class RandomCrop(_Crop):
    """Cuts a window of `size` at a uniform place from the image padded on all sides. torchvision RandomCrop.

    size: pixels (a number or height, width); null keeps the image's size.
    padding: pixels on all sides; or (horizontal, vertical); or (left, top, right, bottom).
    mode: what the padding shows: `zero` (the level `fill`), `reflect` (mirrored without the edge), `edge` (repeated).
    """

    name = "random_crop"
    writes = (Step(CROP, "move.crop", _window),)
    padding: Border | tuple[Border, Border] | tuple[Border, Border, Border, Border] = 0
    mode: Literal["zero", "reflect", "edge"] = "zero"
    fill: Annotated[float | tuple[float, float, float], Levels] = 0.0

    def borders(self) -> tuple[int, int, int, int]:
        """Padding at the left, top, right and bottom."""
        pad = self.padding
        if isinstance(pad, int):
            return pad, pad, pad, pad
        return pad if len(pad) == 4 else (pad[0], pad[1], pad[0], pad[1])

    def numbers(self, site: Site) -> list[float]:
        left, top, right, bottom = self.borders()
        h, w = self.result(site.height, site.width)
        if h > site.height + top + bottom or w > site.width + left + right:
            raise AugmentError(
                f"random_crop: size {h} x {w} is larger than the padded image,"
                f" {site.height + top + bottom} x {site.width + left + right}"
            )
        if self.mode == "reflect" and (max(top, bottom) >= site.height or max(left, right) >= site.width):
            raise AugmentError(
                f"random_crop: reflected padding must be smaller than the image, {site.height} x {site.width}"
            )
        return [h, w, left, top, right, bottom, MODES.index(self.mode), *fills(self.fill)]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, _, _ = draw(key, 0)
        codes[0] = CROP
        args[0] = below(w0, height + numbers[3] + numbers[5] - numbers[0] + 1) - numbers[3]
        args[1] = below(w1, width + numbers[2] + numbers[4] - numbers[1] + 1) - numbers[2]
        args[2] = numbers[0]
        args[3] = numbers[1]
        for i in range(4):
            args[4 + i] = numbers[6 + i]

    @classmethod
    def example(cls, site: Site) -> Self:
        return cls(padding=max(4, min(site.height, site.width) // 8))  # padding that shows


class RandomResizedCrop(_Crop):
    """Cuts a window of random area and shape and resizes it, bilinear with antialias. torchvision RandomResizedCrop.

    Ten tries: area uniform in `scale` (share of the image), aspect ratio (width / height) log-uniform in `ratio`,
    place uniform; where none fits, the largest central window within the ratio (Szegedy et al., 2015).

    size: pixels of the result (a number or height, width); null keeps the image's size.
    """

    name = "random_resized_crop"
    writes = (Step(RESIZED_CROP, "resize.resized_crop", _window),)
    scale: Share = (0.08, 1.0)
    ratio: Ratio = (3.0 / 4.0, 4.0 / 3.0)

    def numbers(self, site: Site) -> list[float]:
        return [*self.result(site.height, site.width), *self.scale, *self.ratio]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        codes[0] = RESIZED_CROP
        args[4] = numbers[0]
        args[5] = numbers[1]
        low = math.log(numbers[4])
        high = math.log(numbers[5])
        for attempt in range(10):
            w0, w1, w2, w3 = draw(key, attempt)
            area = height * width * between(w0, numbers[2], numbers[3])
            ratio = math.exp(between(w1, low, high))
            w = rounded(math.sqrt(area * ratio))
            h = rounded(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                args[0] = below(w2, height - h + 1)
                args[1] = below(w3, width - w + 1)
                args[2] = h
                args[3] = w
                return
        shape = width / height
        h = np.int64(height)
        w = np.int64(width)
        if shape < numbers[4]:
            h = max(rounded(width / numbers[4]), 1)
        elif shape > numbers[5]:
            w = max(rounded(height * numbers[5]), 1)
        args[0] = (height - h) // 2
        args[1] = (width - w) // 2
        args[2] = h
        args[3] = w


class Affine(Op):
    """Turns, shifts, scales and shears about the centre. torchvision RandomAffine.

    degrees: angle, uniform; a number d stands for (-d, d). Clockwise, as RandomAffine has it.
    translate: shift of up to these shares of the width and of the height, uniform, rounded to whole pixels.
    scale: factor, uniform in the pair.
    shear: degrees: a number s or a pair shears along x; four numbers are two ranges, along x and along y.
    interpolation, fill: as in rotate.
    """

    name = "affine"
    shows: ClassVar = {"degrees": 15.0, "translate": (0.1, 0.1), "scale": (0.9, 1.1)}
    writes = AFFINE_STEPS
    degrees: Degrees = 0.0
    translate: tuple[Probability, Probability] | None = None
    scale: Annotated[tuple[float, float] | None, rising()] = None
    shear: Shear = None
    p: Probability = 1.0
    interpolation: Interpolation = "nearest"
    fill: FillLevels = 0.0

    def numbers(self, site: Site) -> list[float]:
        shear = self.shear if self.shear is not None else 0.0
        sheared = (-shear, shear, 0.0, 0.0) if isinstance(shear, float | int) else (*shear, 0.0, 0.0)[:4]
        shift = self.translate or (0.0, 0.0)
        return [*warp_numbers(AFFINE_NEAREST, self.interpolation, self.fill), self.p,
                *span(self.degrees, 0.0, -math.inf)[:2], shift[0] * site.width, shift[1] * site.height,
                *(self.scale or (1.0, 1.0)), *sheared]  # fmt: skip

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, w2, w3 = draw(key, 0)
        if unit(w0) < numbers[4]:
            w4, w5, w6, _ = draw(key, 1)
            start_warp(numbers, codes, args, 0, 6)
            angle = math.radians(between(w1, numbers[5], numbers[6]))
            tx = np.rint(between(w2, -numbers[7], numbers[7]))
            ty = np.rint(between(w3, -numbers[8], numbers[8]))
            scale = between(w4, numbers[9], numbers[10])
            sx = math.radians(between(w5, numbers[11], numbers[12]))
            sy = math.radians(between(w6, numbers[13], numbers[14]))
            write_affine(args, 0, angle, tx, ty, scale, sx, sy, 0.0, 0.0)


class Perspective(Op):
    """Moves each corner inwards by up to `distortion_scale` / 2 of the side. torchvision RandomPerspective.

    interpolation, fill: as in rotate.
    """

    name = "perspective"
    writes = (
        Step(PERSPECTIVE_NEAREST, "warp.perspective_nearest", "perspective"),
        Step(PERSPECTIVE_BILINEAR, "warp.perspective_bilinear", "perspective"),
    )
    distortion_scale: Probability = 0.5
    p: Probability = 0.5
    interpolation: Interpolation = "bilinear"
    fill: FillLevels = 0.0

    def numbers(self, site: Site) -> list[float]:
        if site.height < 2 or site.width < 2:
            raise AugmentError(f"perspective: the image must be at least 2 x 2, not {site.height} x {site.width}")
        # At distortion 1 all corners could meet in the middle; half a side less one pixel keeps them apart.
        reach_x = max(1, min(int(self.distortion_scale * (site.width // 2)) + 1, (site.width - 1) // 2))
        reach_y = max(1, min(int(self.distortion_scale * (site.height // 2)) + 1, (site.height - 1) // 2))
        return [*warp_numbers(PERSPECTIVE_NEAREST, self.interpolation, self.fill), self.p, reach_x, reach_y]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, _, _, _ = draw(key, 0)
        if unit(w0) < numbers[4]:
            start_warp(numbers, codes, args, 0, 8)
            a0, a1, a2, a3 = draw(key, 1)
            b0, b1, b2, b3 = draw(key, 2)
            bx = numbers[5]
            by = numbers[6]
            x0 = np.float64(below(a0, bx))
            y0 = np.float64(below(a1, by))
            x1 = np.float64(width - bx + below(a2, bx))
            y1 = np.float64(below(a3, by))
            x2 = np.float64(width - bx + below(b0, bx))
            y2 = np.float64(height - by + below(b1, by))
            x3 = np.float64(below(b2, bx))
            y3 = np.float64(height - by + below(b3, by))
            write_perspective(args, 0, x0, y0, x1, y1, x2, y2, x3, y3, width - 1.0, height - 1.0)
