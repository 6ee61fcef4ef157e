"""Every op, defined once: its parameters, its plan, its meaning.

The contract of an op. A class below is a frozen, validated set of parameters. It says

    steps        how many steps of the program it owns (a step is one op code with up to `ARGS` numbers);
    result       what it makes of the image's height and width, the same for all samples of a batch;
    numbers      its parameters as a flat list of floats, for images of one size;
    plan         what one sample will get: a scalar function from keyed random words and `numbers` to steps. A step
                 that is left alone stays NOP: the op does not touch that sample.

`plan` is written once, in plain scalar arithmetic on flat arrays. Run as it stands it is the reference; the executor
compiles the same source to machine code. Nothing here imports numba or torch, so a recipe is validated without them.

What a step does to pixels is defined here in words and executed by `cpu` (compiled) and `batched` (torch) alike.
Definitions are those of torchvision 0.29 `transforms.v2` on uint8 tensors, where it has the op. "Truncated" means
rounded towards zero after clamping to [0, 255], "rounded" means to the nearest, ties to even.

An op of your own is a subclass of `CustomOp`; see there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from kitae.errors import AugmentError
from kitae.keyed import TWO_POW_MINUS_32, philox
from kitae.spec import Spec

if TYPE_CHECKING:
    import torch

    from kitae.augment.plan import Draw

ARGS = 12  # numbers a step carries
MOST_BOXES = 7  # erased after normalisation, a sample

# Op codes: what a step of a program says. Policies and color_jitter are sequences of these.
NOP = 0
CROP = 1  # top, left, height, width, mode, fill x 3; top and left may lie outside the image
HFLIP = 2
VFLIP = 3
AFFINE_NEAREST = 4  # six numbers of the inverse matrix about the image's centre, fill x 3 (NaN: none)
AFFINE_BILINEAR = 5
PERSPECTIVE_NEAREST = 6  # eight coefficients, output pixel centre to input, fill x 3 (NaN: none)
PERSPECTIVE_BILINEAR = 7
RESIZED_CROP = 8  # top, left, height, width, new height, new width
BRIGHTNESS = 9  # factor
CONTRAST = 10  # factor
SATURATION = 11  # factor
HUE = 12  # shift in turns, [-0.5, 0.5]
GRAYSCALE = 13
INVERT = 14
POSTERIZE = 15  # bits
SOLARIZE = 16  # threshold
AUTOCONTRAST = 17
EQUALIZE = 18
SHARPNESS = 19  # factor
GAUSSIAN_BLUR = 20  # kernel width, kernel height, sigma x, sigma y
GAUSSIAN_NOISE = 21  # key high word, key low word, mean, sigma (of the range [0, 1])
SALT_AND_PEPPER = 22  # key high word, key low word, share of pixels, share of salt among them
ERASE = 23  # top, left, height, width, value x 3 (levels)
ERASE_AFTER = 24  # top, left, height, width: zero after normalisation
AUGMIX_BEGIN = 25  # weight of the original
CHAIN_BEGIN = 26
CHAIN_END = 27  # weight of this chain
AUGMIX_END = 28
CUSTOM = 29  # a user's op or torchvision transform takes over here
CODES = 30

CODE_NAMES = (
    "nop", "crop", "horizontal_flip", "vertical_flip", "affine", "affine", "perspective", "perspective",
    "resized_crop", "brightness", "contrast", "saturation", "hue", "grayscale", "invert", "posterize", "solarize",
    "autocontrast", "equalize", "sharpness", "gaussian_blur", "gaussian_noise", "salt_and_pepper", "erase", "erase",
    "augmix", "chain", "chain end", "augmix end", "custom",
)  # fmt: skip

MODES = ("zero", "reflect", "edge")

Probability = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=2**15)]
Border = Annotated[int, Field(ge=0, le=2**15)]
Kernel = Annotated[int, Field(ge=1, le=63)]
Amount = float | tuple[float, float]
Fill = float | tuple[float, float, float] | None
Interpolation = Literal["nearest", "bilinear"]


@dataclass(frozen=True)
class Site:
    """Where an op stands in a pipeline.

    Attributes:
        channels, height, width: of the images that reach it.
        last: only erasing ops follow, and the output is normalised, so that erasing may write after normalisation.
        mean: levels (0 to 255) of the mean colour, zeros where none is known.
    """

    channels: int
    height: int
    width: int
    last: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)


# The scalar vocabulary of plans. `key` holds six uint64: index low and high, epoch, first slot, seed low and high.


def draw(key: Any, slot: int) -> Any:
    """Four keyed random words (uint64 below 2**32) of this op's slot number `slot`."""
    return philox(key[0], key[1], key[2], key[3] + np.uint64(slot), key[4], key[5])


def unit(word: Any) -> Any:
    """A uniform in [0, 1) from a word."""
    return word * TWO_POW_MINUS_32


def below(word: Any, high: Any) -> Any:
    """An integer in [0, high) from a word."""
    return np.int64((word * np.uint64(high)) >> np.uint64(32))


def between(word: Any, low: Any, high: Any) -> Any:
    """A uniform in [low, high) from a word."""
    return low + (high - low) * (word * TWO_POW_MINUS_32)


def rounded(x: Any) -> Any:
    """To the nearest integer, ties to even, as Python's round."""
    return np.int64(np.rint(x))


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


def span(value: Amount, centre: float = 1.0, low: float = 0.0) -> tuple[float, float]:
    """The range that a number (centre -+ value, cut at `low`) or a pair (itself) stands for."""
    return (max(low, centre - value), centre + value) if isinstance(value, float | int) else value


def fills(fill: Fill) -> list[float]:
    """A fill as three levels; NaN stands for none."""
    if fill is None:
        return [math.nan] * 3
    return [float(fill)] * 3 if isinstance(fill, float | int) else [float(v) for v in fill]


def _check_pair(value: Amount, name: str, low: float, high: float = math.inf) -> Amount:
    a, b = value if isinstance(value, tuple) else (value, value)
    if not low <= a <= b <= high:
        bounds = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f"at least {low:g}"
        raise ValueError(f"{name} must be a number or a rising pair {bounds}, not {value}")
    return value


def _check_factor(value: Amount, name: str) -> Amount:
    return _check_pair(value, name, 0.0)


def check_fill(value: Fill) -> Fill:
    if value is not None and not all(0 <= v <= 255 for v in fills(value)):
        raise ValueError(f"fill must be levels in [0, 255] or null, not {value}")
    return value


class Op(Spec):
    """The base of all ops; see the top of this file for the contract."""

    name: ClassVar[str] = ""
    steps: ClassVar[int] = 1
    codes: ClassVar[tuple[int, ...]] = ()  # that its plan may write, so that only their kernels are compiled
    erases: ClassVar[bool] = False

    @property
    def length(self) -> int:
        """Steps of the program that this op owns."""
        return self.steps

    def result(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the op."""
        return height, width

    def numbers(self, site: Site) -> list[float]:
        """The parameters that `plan` reads, for images of this size.

        Raises:
            AugmentError: the op is impossible at this size.
        """
        raise NotImplementedError

    # (key, numbers, codes, args, height, width) -> None: writes codes[0 .. length) and args[0 .. length * ARGS)
    plan: ClassVar[Callable[..., Any]]


class HorizontalFlip(Op):
    """Mirrors left and right with probability `p`. torchvision RandomHorizontalFlip."""

    name: ClassVar[str] = "horizontal_flip"
    codes: ClassVar[tuple[int, ...]] = (HFLIP,)
    p: Probability = 0.5

    def numbers(self, site: Site) -> list[float]:
        return [self.p]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, _, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = HFLIP


class VerticalFlip(Op):
    """Mirrors top and bottom with probability `p`. torchvision RandomVerticalFlip."""

    name: ClassVar[str] = "vertical_flip"
    codes: ClassVar[tuple[int, ...]] = (VFLIP,)
    p: Probability = 0.5

    def numbers(self, site: Site) -> list[float]:
        return [self.p]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, _, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = VFLIP


class RandomCrop(Op):
    """Cuts a window of `size` at a uniform place from the image padded on all sides. torchvision RandomCrop.

    size: pixels (a number or height, width); null keeps the image's size.
    padding: pixels on all sides; or (horizontal, vertical); or (left, top, right, bottom).
    mode: what the padding shows: `zero` (the level `fill`), `reflect` (mirrored without the edge), `edge` (repeated).
    """

    name: ClassVar[str] = "random_crop"
    codes: ClassVar[tuple[int, ...]] = (CROP,)
    size: Side | tuple[Side, Side] | None = None
    padding: Border | tuple[Border, Border] | tuple[Border, Border, Border, Border] = 0
    mode: Literal["zero", "reflect", "edge"] = "zero"
    fill: float | tuple[float, float, float] = 0.0

    _fill = field_validator("fill")(check_fill)

    def borders(self) -> tuple[int, int, int, int]:
        """Padding at the left, top, right and bottom."""
        pad = self.padding
        if isinstance(pad, int):
            return pad, pad, pad, pad
        return pad if len(pad) == 4 else (pad[0], pad[1], pad[0], pad[1])

    def result(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        return (self.size, self.size) if isinstance(self.size, int) else self.size

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
        args[4] = numbers[6]
        args[5] = numbers[7]
        args[6] = numbers[8]
        args[7] = numbers[9]


class RandomResizedCrop(Op):
    """Cuts a window of random area and shape and resizes it, bilinear with antialias. torchvision RandomResizedCrop.

    Ten tries: area uniform in `scale` (share of the image), aspect ratio (width / height) log-uniform in `ratio`,
    place uniform; where none fits, the largest central window within the ratio (Szegedy et al., 2015).

    size: pixels of the result (a number or height, width); null keeps the image's size.
    """

    name: ClassVar[str] = "random_resized_crop"
    codes: ClassVar[tuple[int, ...]] = (RESIZED_CROP,)
    size: Side | tuple[Side, Side] | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3.0 / 4.0, 4.0 / 3.0)

    @field_validator("scale", "ratio")
    @classmethod
    def _rising(cls, value: tuple[float, float], info: Any) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] or (info.field_name == "scale" and value[1] > 1):
            raise ValueError(f"{info.field_name} must be a rising pair above 0, not {value}")
        return value

    def result(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        return (self.size, self.size) if isinstance(self.size, int) else self.size

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


class Rotate(Op):
    """Turns counter-clockwise about the centre by an angle uniform in `degrees`. torchvision RandomRotation.

    degrees: a number d stands for (-d, d).
    fill: level of what comes from outside (a number or one a channel). With bilinear, null blends with black at the
        border once, a level blends twice, as torchvision does.
    """

    name: ClassVar[str] = "rotate"
    codes: ClassVar[tuple[int, ...]] = (AFFINE_NEAREST, AFFINE_BILINEAR)
    degrees: Amount = 15.0
    p: Probability = 1.0
    interpolation: Interpolation = "nearest"
    fill: Fill = 0.0

    _fill = field_validator("fill")(check_fill)

    @field_validator("degrees")
    @classmethod
    def _degrees(cls, value: Amount) -> Amount:
        return _check_pair(value, "degrees", 0.0 if isinstance(value, float | int) else -math.inf)

    def numbers(self, site: Site) -> list[float]:
        bilinear = self.interpolation == "bilinear"
        return [self.p, *span(self.degrees, 0.0, -math.inf), bilinear, *fills(self.fill)]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = AFFINE_NEAREST + np.int64(numbers[3])
            write_affine(args, 0, -math.radians(between(w1, numbers[1], numbers[2])), 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
            args[6] = numbers[4]
            args[7] = numbers[5]
            args[8] = numbers[6]


class Affine(Op):
    """Turns, shifts, scales and shears about the centre. torchvision RandomAffine.

    degrees: angle, uniform; a number d stands for (-d, d). Clockwise, as RandomAffine has it.
    translate: shift of up to these shares of the width and of the height, uniform, rounded to whole pixels.
    scale: factor, uniform in the pair.
    shear: degrees: a number s or a pair shears along x; four numbers are two ranges, along x and along y.
    """

    name: ClassVar[str] = "affine"
    codes: ClassVar[tuple[int, ...]] = (AFFINE_NEAREST, AFFINE_BILINEAR)
    degrees: Amount = 0.0
    translate: tuple[Probability, Probability] | None = None
    scale: tuple[float, float] | None = None
    shear: float | tuple[float, float] | tuple[float, float, float, float] | None = None
    p: Probability = 1.0
    interpolation: Interpolation = "nearest"
    fill: Fill = 0.0

    _fill = field_validator("fill")(check_fill)

    @field_validator("degrees")
    @classmethod
    def _degrees(cls, value: Amount) -> Amount:
        return _check_pair(value, "degrees", 0.0 if isinstance(value, float | int) else -math.inf)

    @field_validator("scale")
    @classmethod
    def _scale(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] <= value[1]:
            raise ValueError(f"scale must be a rising pair above 0, not {value}")
        return value

    @field_validator("shear")
    @classmethod
    def _shear(cls, value: Any) -> Any:
        pair = value[:2] if isinstance(value, tuple) else (0.0 if value is None else value)
        _check_pair(pair, "shear", 0.0 if isinstance(pair, float | int) else -89.0, 89.0)
        if isinstance(value, tuple) and len(value) == 4:
            _check_pair(value[2:], "shear", -89.0, 89.0)
        return value

    def numbers(self, site: Site) -> list[float]:
        shear = self.shear if self.shear is not None else 0.0
        sheared = (-shear, shear, 0.0, 0.0) if isinstance(shear, float | int) else (*shear, 0.0, 0.0)[:4]
        shift = self.translate or (0.0, 0.0)
        bilinear = self.interpolation == "bilinear"
        return [self.p, *span(self.degrees, 0.0, -math.inf), shift[0] * site.width, shift[1] * site.height,
                *(self.scale or (1.0, 1.0)), *sheared, bilinear, *fills(self.fill)]  # fmt: skip

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, w2, w3 = draw(key, 0)
        if unit(w0) < numbers[0]:
            w4, w5, w6, _ = draw(key, 1)
            codes[0] = AFFINE_NEAREST + np.int64(numbers[11])
            write_affine(
                args,
                0,
                math.radians(between(w1, numbers[1], numbers[2])),
                np.rint(between(w2, -numbers[3], numbers[3])),
                np.rint(between(w3, -numbers[4], numbers[4])),
                between(w4, numbers[5], numbers[6]),
                math.radians(between(w5, numbers[7], numbers[8])),
                math.radians(between(w6, numbers[9], numbers[10])),
                0.0,
                0.0,
            )
            args[6] = numbers[12]
            args[7] = numbers[13]
            args[8] = numbers[14]


class Perspective(Op):
    """Moves each corner inwards by up to `distortion_scale` / 2 of the side, with probability `p`.

    torchvision RandomPerspective.
    """

    name: ClassVar[str] = "perspective"
    codes: ClassVar[tuple[int, ...]] = (PERSPECTIVE_NEAREST, PERSPECTIVE_BILINEAR)
    distortion_scale: Probability = 0.5
    p: Probability = 0.5
    interpolation: Interpolation = "bilinear"
    fill: Fill = 0.0

    _fill = field_validator("fill")(check_fill)

    def numbers(self, site: Site) -> list[float]:
        if site.height < 2 or site.width < 2:
            raise AugmentError(f"perspective: the image must be at least 2 x 2, not {site.height} x {site.width}")
        # At distortion 1 all corners could meet in the middle; half a side less one pixel keeps a quadrangle.
        reach_x = max(1, min(int(self.distortion_scale * (site.width // 2)) + 1, (site.width - 1) // 2))
        reach_y = max(1, min(int(self.distortion_scale * (site.height // 2)) + 1, (site.height - 1) // 2))
        bilinear = self.interpolation == "bilinear"
        return [self.p, reach_x, reach_y, bilinear, *fills(self.fill)]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, _, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = PERSPECTIVE_NEAREST + np.int64(numbers[3])
            a0, a1, a2, a3 = draw(key, 1)
            b0, b1, b2, b3 = draw(key, 2)
            bx = numbers[1]
            by = numbers[2]
            x0 = np.float64(below(a0, bx))
            y0 = np.float64(below(a1, by))
            x1 = np.float64(width - bx + below(a2, bx))
            y1 = np.float64(below(a3, by))
            x2 = np.float64(width - bx + below(b0, bx))
            y2 = np.float64(height - by + below(b1, by))
            x3 = np.float64(below(b2, bx))
            y3 = np.float64(height - by + below(b3, by))
            write_perspective(args, 0, x0, y0, x1, y1, x2, y2, x3, y3, width - 1.0, height - 1.0)
            args[8] = numbers[4]
            args[9] = numbers[5]
            args[10] = numbers[6]


class ColorJitter(Op):
    """Brightness, contrast, saturation and hue, each by its own draw, in a random order. torchvision ColorJitter.

    brightness, contrast, saturation: a number x draws the factor from [max(0, 1 - x), 1 + x], a pair from itself;
    hue: a number x <= 0.5 draws the shift (in turns) from [-x, x]. Where nothing would change, the step is left out.
    """

    name: ClassVar[str] = "color_jitter"
    codes: ClassVar[tuple[int, ...]] = (BRIGHTNESS, CONTRAST, SATURATION, HUE)
    steps: ClassVar[int] = 4
    brightness: Amount = 0.0
    contrast: Amount = 0.0
    saturation: Amount = 0.0
    hue: Amount = 0.0
    p: Probability = 1.0

    @field_validator("brightness", "contrast", "saturation")
    @classmethod
    def _factor(cls, value: Amount, info: Any) -> Amount:
        return _check_factor(value, info.field_name)

    @field_validator("hue")
    @classmethod
    def _hue(cls, value: Amount) -> Amount:
        return _check_pair(value, "hue", 0.0 if isinstance(value, float | int) else -0.5, 0.5)

    def numbers(self, site: Site) -> list[float]:
        out = [self.p]
        for value in (self.brightness, self.contrast, self.saturation):
            low, high = span(value)
            out += [not low == high == 1.0, low, high]
        low, high = span(self.hue, 0.0, -0.5)
        out += [not low == high == 0.0, low, high]
        if site.channels == 1:  # a grey image has neither
            out[7] = out[10] = 0.0
        return out

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        p0, _, _, _ = draw(key, 0)
        if unit(p0) < numbers[0]:
            w0, w1, w2, w3 = draw(key, 1)
            f0, f1, f2, f3 = draw(key, 2)
            # The order sorts the four words; ties (one in 2**32) go to the earlier.
            c10 = np.int64(w1 < w0)
            c20 = np.int64(w2 < w0)
            c30 = np.int64(w3 < w0)
            c21 = np.int64(w2 < w1)
            c31 = np.int64(w3 < w1)
            c32 = np.int64(w3 < w2)
            if numbers[1] > 0:
                at = c10 + c20 + c30
                codes[at] = BRIGHTNESS
                args[at * ARGS] = between(f0, numbers[2], numbers[3])
            if numbers[4] > 0:
                at = 1 - c10 + c21 + c31
                codes[at] = CONTRAST
                args[at * ARGS] = between(f1, numbers[5], numbers[6])
            if numbers[7] > 0:
                at = 2 - c20 - c21 + c32
                codes[at] = SATURATION
                args[at * ARGS] = between(f2, numbers[8], numbers[9])
            if numbers[10] > 0:
                at = 3 - c30 - c31 - c32
                codes[at] = HUE
                args[at * ARGS] = between(f3, numbers[11], numbers[12])


class _Factor(Op):
    amount: Amount = 0.2
    p: Probability = 1.0

    @field_validator("amount")
    @classmethod
    def _amount(cls, value: Amount) -> Amount:
        return _check_factor(value, "amount")

    def numbers(self, site: Site) -> list[float]:
        return [self.p, *span(self.amount)]


class Brightness(_Factor):
    """Multiplies by a factor, truncated. `amount` x draws it from [max(0, 1 - x), 1 + x], a pair from itself."""

    name: ClassVar[str] = "brightness"
    codes: ClassVar[tuple[int, ...]] = (BRIGHTNESS,)

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = BRIGHTNESS
            args[0] = between(w1, numbers[1], numbers[2])


class Contrast(_Factor):
    """Moves away from the mean of the grey image by a factor, truncated. `amount` as in brightness.

    Grey is 0.2989 R + 0.587 G + 0.114 B, floored; its mean is not rounded.
    """

    name: ClassVar[str] = "contrast"
    codes: ClassVar[tuple[int, ...]] = (CONTRAST,)

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = CONTRAST
            args[0] = between(w1, numbers[1], numbers[2])


class Saturation(_Factor):
    """Moves away from the pixel's own grey (floored) by a factor, truncated. `amount` as in brightness.

    An image of one channel stays as it is.
    """

    name: ClassVar[str] = "saturation"
    codes: ClassVar[tuple[int, ...]] = (SATURATION,)

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = SATURATION
            args[0] = between(w1, numbers[1], numbers[2])


class Hue(Op):
    """Turns the hue in HSV space by a shift in turns. `amount` x draws it from [-x, x], a pair from itself; x <= 0.5.

    An image of one channel stays as it is.
    """

    name: ClassVar[str] = "hue"
    codes: ClassVar[tuple[int, ...]] = (HUE,)
    amount: Amount = 0.1
    p: Probability = 1.0

    @field_validator("amount")
    @classmethod
    def _amount(cls, value: Amount) -> Amount:
        return _check_pair(value, "amount", 0.0 if isinstance(value, float | int) else -0.5, 0.5)

    def numbers(self, site: Site) -> list[float]:
        return [self.p, *span(self.amount, 0.0, -0.5)]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = HUE
            args[0] = between(w1, numbers[1], numbers[2])


class _Maybe(Op):
    p: Probability = 0.5

    def numbers(self, site: Site) -> list[float]:
        return [self.p]


class Grayscale(_Maybe):
    """All channels become grey, 0.2989 R + 0.587 G + 0.114 B floored, with probability `p`. RandomGrayscale."""

    name: ClassVar[str] = "grayscale"
    codes: ClassVar[tuple[int, ...]] = (GRAYSCALE,)
    p: Probability = 0.1

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, _, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = GRAYSCALE


class Invert(_Maybe):
    """255 - level, with probability `p`. torchvision RandomInvert."""

    name: ClassVar[str] = "invert"
    codes: ClassVar[tuple[int, ...]] = (INVERT,)

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, _, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = INVERT


class Posterize(_Maybe):
    """Keeps the upper `bits` bits of each level, with probability `p`. torchvision RandomPosterize."""

    name: ClassVar[str] = "posterize"
    codes: ClassVar[tuple[int, ...]] = (POSTERIZE,)
    bits: int = Field(4, ge=0, le=8)

    def numbers(self, site: Site) -> list[float]:
        return [self.p, self.bits]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, _, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = POSTERIZE
            args[0] = numbers[1]


class Solarize(_Maybe):
    """Inverts levels at or above `threshold`, with probability `p`. torchvision RandomSolarize."""

    name: ClassVar[str] = "solarize"
    codes: ClassVar[tuple[int, ...]] = (SOLARIZE,)
    threshold: float = Field(128.0, ge=0, le=256)

    def numbers(self, site: Site) -> list[float]:
        return [self.p, self.threshold]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, _, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = SOLARIZE
            args[0] = numbers[1]


class Autocontrast(_Maybe):
    """Stretches each channel to the full range, truncated, with probability `p`. torchvision RandomAutocontrast."""

    name: ClassVar[str] = "autocontrast"
    codes: ClassVar[tuple[int, ...]] = (AUTOCONTRAST,)

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, _, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = AUTOCONTRAST


class Equalize(_Maybe):
    """Flattens each channel's histogram by Pillow's step rule, with probability `p`. torchvision RandomEqualize."""

    name: ClassVar[str] = "equalize"
    codes: ClassVar[tuple[int, ...]] = (EQUALIZE,)

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, _, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = EQUALIZE


class Sharpness(Op):
    """Moves away from a 3 x 3 smoothing by a factor: 0 smooths, 1 keeps, 2 sharpens; truncated.

    Smoothing is (1 1 1, 1 5 1, 1 1 1) / 13, rounded; border pixels stay. torchvision RandomAdjustSharpness. `factor`: a
    number is that factor, a pair is a range.
    """

    name: ClassVar[str] = "sharpness"
    codes: ClassVar[tuple[int, ...]] = (SHARPNESS,)
    factor: Amount = 2.0
    p: Probability = 0.5

    @field_validator("factor")
    @classmethod
    def _factor(cls, value: Amount) -> Amount:
        return _check_factor(value, "factor")

    def numbers(self, site: Site) -> list[float]:
        low, high = self.factor if isinstance(self.factor, tuple) else (self.factor, self.factor)
        return [self.p, low, high]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = SHARPNESS
            args[0] = between(w1, numbers[1], numbers[2])


class GaussianBlur(Op):
    """Convolves with a Gaussian, mirrored at the border, rounded. torchvision GaussianBlur.

    kernel_size: odd pixels (a number or width, height). sigma: pixels; a number, or a pair to draw from.
    """

    name: ClassVar[str] = "gaussian_blur"
    codes: ClassVar[tuple[int, ...]] = (GAUSSIAN_BLUR,)
    kernel_size: Kernel | tuple[Kernel, Kernel] = 3
    sigma: Amount = (0.1, 2.0)
    p: Probability = 1.0

    @field_validator("kernel_size")
    @classmethod
    def _odd(cls, value: Any) -> Any:
        if any(k % 2 == 0 for k in (value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"kernel_size must be odd, not {value}")
        return value

    @field_validator("sigma")
    @classmethod
    def _sigma(cls, value: Amount) -> Amount:
        return _check_pair(value, "sigma", 1e-6)

    def numbers(self, site: Site) -> list[float]:
        kx, ky = self.kernel_size if isinstance(self.kernel_size, tuple) else (self.kernel_size, self.kernel_size)
        if kx // 2 >= site.width or ky // 2 >= site.height:
            raise AugmentError(
                f"gaussian_blur: a kernel of {kx} x {ky} needs an image larger than {site.width} x {site.height}"
            )
        low, high = self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)
        return [self.p, kx, ky, low, high]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, _, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = GAUSSIAN_BLUR
            args[0] = numbers[1]
            args[1] = numbers[2]
            args[2] = between(w1, numbers[3], numbers[4])
            args[3] = args[2]


class GaussianNoise(Op):
    """Adds normal noise to every value, noise truncated to whole levels, the sum clamped. torchvision GaussianNoise.

    mean, sigma: of the range [0, 1] (sigma a number, or a pair to draw from). Noise comes from a table of the normal
    quantile function at 65,536 points, addressed by a hash of the sample's key and the pixel's place.
    """

    name: ClassVar[str] = "gaussian_noise"
    codes: ClassVar[tuple[int, ...]] = (GAUSSIAN_NOISE,)
    mean: float = Field(0.0, ge=-1, le=1)
    sigma: Amount = 0.1
    p: Probability = 1.0

    @field_validator("sigma")
    @classmethod
    def _sigma(cls, value: Amount) -> Amount:
        return _check_pair(value, "sigma", 0.0, 10.0)

    def numbers(self, site: Site) -> list[float]:
        low, high = self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)
        return [self.p, self.mean, low, high]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, w2, w3 = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = GAUSSIAN_NOISE
            args[0] = np.float64(w2)
            args[1] = np.float64(w3)
            args[2] = numbers[1]
            args[3] = between(w1, numbers[2], numbers[3])


class SaltAndPepper(Op):
    """Sets a share of the pixels to white (salt) or black (pepper), all channels alike.

    amount: probability of a pixel to be hit; a number, or a pair to draw from. salt: probability of white among them.
    """

    name: ClassVar[str] = "salt_and_pepper"
    codes: ClassVar[tuple[int, ...]] = (SALT_AND_PEPPER,)
    amount: Amount = 0.02
    salt: Probability = 0.5
    p: Probability = 1.0

    @field_validator("amount")
    @classmethod
    def _amount(cls, value: Amount) -> Amount:
        return _check_pair(value, "amount", 0.0, 1.0)

    def numbers(self, site: Site) -> list[float]:
        low, high = self.amount if isinstance(self.amount, tuple) else (self.amount, self.amount)
        return [self.p, low, high, self.salt]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, w2, w3 = draw(key, 0)
        if unit(w0) < numbers[0]:
            codes[0] = SALT_AND_PEPPER
            args[0] = np.float64(w2)
            args[1] = np.float64(w3)
            args[2] = between(w1, numbers[1], numbers[2])
            args[3] = numbers[3]


def write_erase(codes: Any, args: Any, top: Any, left: Any, height: Any, width: Any, numbers: Any, at: int) -> None:
    """An erasing step: after normalisation where numbers[at] says so, else with the three levels that follow."""
    codes[0] = ERASE_AFTER if numbers[at] > 0 else ERASE
    args[0] = top
    args[1] = left
    args[2] = height
    args[3] = width
    args[4] = numbers[at + 1]
    args[5] = numbers[at + 2]
    args[6] = numbers[at + 3]


class _Erasing(Op):
    erases: ClassVar[bool] = True
    codes: ClassVar[tuple[int, ...]] = (ERASE,)
    value: float | tuple[float, float, float] | None = None

    @field_validator("value")
    @classmethod
    def _value(cls, value: Any) -> Any:
        if value is not None and not all(0 <= v <= 255 for v in fills(value)):
            raise ValueError(f"value must be levels in [0, 255] or null, not {value}")
        return value

    def _colour(self, site: Site) -> list[float]:
        if self.value is None:
            return [site.last, *(float(round(v)) for v in site.mean)]
        return [0.0, *fills(self.value)]


class RandomErasing(_Erasing):
    """Erases a rectangle with probability `p`. Zhong et al., "Random erasing data augmentation" (2017); torchvision.

    Ten tries: area uniform in `scale` (share of the image), aspect ratio (height / width) log-uniform in `ratio`, place
    uniform, smaller than the image both ways; where none fits, nothing is erased.

    value: levels to write (0 to 255); null writes 0 *after* normalisation, which is the mean colour. Where other ops
        follow, null writes the mean colour in place; where the output is uint8, it writes 0.
    """

    name: ClassVar[str] = "random_erasing"
    p: Probability = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)

    @field_validator("scale", "ratio")
    @classmethod
    def _rising(cls, value: tuple[float, float], info: Any) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] or (info.field_name == "scale" and value[1] > 1):
            raise ValueError(f"{info.field_name} must be a rising pair above 0, not {value}")
        return value

    def numbers(self, site: Site) -> list[float]:
        return [self.p, *self.scale, *(math.log(r) for r in self.ratio), *self._colour(site)]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        p0, _, _, _ = draw(key, 0)
        if unit(p0) < numbers[0]:
            for attempt in range(1, 11):
                w0, w1, w2, w3 = draw(key, attempt)
                area = height * width * between(w0, numbers[1], numbers[2])
                ratio = math.exp(between(w1, numbers[3], numbers[4]))
                h = rounded(math.sqrt(area * ratio))
                w = rounded(math.sqrt(area / ratio))
                if h < height and w < width:
                    top = below(w2, height - h + 1)
                    left = below(w3, width - w + 1)
                    write_erase(codes, args, top, left, h, w, numbers, 5)
                    return


class Cutout(_Erasing):
    """Erases a square of `size` pixels about a uniform centre, clipped. DeVries and Taylor, "Cutout" (2017).

    value: as in random_erasing.
    """

    name: ClassVar[str] = "cutout"
    size: Side = 16
    p: Probability = 1.0

    def numbers(self, site: Site) -> list[float]:
        return [self.p, self.size, *self._colour(site)]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, w2, _ = draw(key, 0)
        if unit(w0) < numbers[0]:
            side = np.int64(numbers[1])
            top = below(w1, height) - side // 2
            left = below(w2, width) - side // 2
            bottom = min(top + side, height)
            right = min(left + side, width)
            top = max(top, 0)
            left = max(left, 0)
            write_erase(codes, args, top, left, bottom - top, right - left, numbers, 2)


class CustomOp(Op):
    """The base of an op of your own: two methods, and it runs on both executors.

        class Pixelate(CustomOp):
            p: float = 0.3

            def draw(self, key, height, width):
                return {"on": key.uniform(0) < self.p, "block": key.integers(1, 2, 9)}

            def apply(self, images, on, block):
                ...  # torch uint8 [N, C, H, W] in and out, on the executor's device

    `draw` gets a `Draw`: keyed uniforms, integers and normals, one a sample, by slot (0 to 63). It returns arrays whose
    first dimension is N. `apply` gets the images (a fresh tensor that it may change) and those arrays, and returns
    uint8 images of `result`'s size. Nothing else may be random in it, and what it does to a sample must not depend on
    the others.
    """

    name: ClassVar[str] = "custom"
    codes: ClassVar[tuple[int, ...]] = (CUSTOM,)

    def numbers(self, site: Site) -> list[float]:
        return []

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        codes[0] = CUSTOM

    def draw(self, key: Draw, height: int, width: int) -> dict[str, Any]:
        """Keyed parameters of each sample: arrays with first dimension N."""
        return {}

    def apply(self, images: torch.Tensor, **parameters: Any) -> torch.Tensor:
        """The images, uint8 [N, C, H, W], changed."""
        raise NotImplementedError
