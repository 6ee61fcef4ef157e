"""Sharpness, blur, noise, and ops that cover a part of the image."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kitae.augment.ops.base import (
    ERASE,
    ERASE_AFTER,
    GAUSSIAN_BLUR,
    GAUSSIAN_NOISE,
    RAW_WORDS,
    SALT_AND_PEPPER,
    SHARPNESS,
    Amount,
    Argument,
    Factor,
    FillLevels,
    Lines,
    Op,
    Probability,
    Range,
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
    pair,
    rounded,
    unit,
    within,
)
from kitae.augment.ops.color import FACTOR
from kitae.errors import AugmentError
from kitae.keyed import normal_quantile

Kernel = Annotated[int, Field(ge=1, le=63)]
KernelSize = Annotated[Kernel | tuple[Kernel, Kernel], checked(lambda size: all(k % 2 for k in pair(size)[:2]), "odd")]

_KEY = Argument("key", 0, 0.0, 2.0**53 - 1, 0, True, "of the noise, which is the same for the same key")
_NOISE = (
    Argument("sigma", 3, high=10.0, meaning="standard deviation, as a share of the range of levels"),
    Argument("mean", 2, -1.0, 1.0, 0.0, meaning="mean, as a share of the range of levels"),
    _KEY,
)
_IMPULSES = (
    Argument("amount", 2, high=1.0, meaning="probability of a pixel to be hit"),
    Argument("salt", 3, 0.0, 1.0, 0.5, meaning="probability of white among them"),
    _KEY,
)


class Sharpness(Op):
    """Moves away from a 3 x 3 smoothing by a factor: 0 smooths, 1 keeps, 2 sharpens; truncated.

    Smoothing is (1 1 1, 1 5 1, 1 1 1) / 13, rounded; border pixels are left as they are. torchvision
    RandomAdjustSharpness.

    factor: a number is that factor, a pair is a range.
    """

    name = "sharpness"
    shows: ClassVar = {"factor": (0.0, 4.0)}
    writes = (Step(SHARPNESS, "filter.sharpness", "sharpness {0:.2f}", FACTOR),)
    factor: Factor = 2.0
    p: Probability = 0.5

    def ranges(self, site: Site) -> Sequence[Range]:
        return (pair(self.factor),)


class GaussianBlur(Op):
    """Convolves with a Gaussian, mirrored at the border, rounded. torchvision GaussianBlur.

    kernel_size: odd number of pixels (a number or width, height).
    sigma: pixels; a number, or a pair to draw from.
    """

    name = "gaussian_blur"
    shows: ClassVar = {"kernel_size": 5}
    writes = (Step(GAUSSIAN_BLUR, "filter.gaussian_blur", "blur sigma {2:.2f}"),)
    kernel_size: KernelSize = 3
    sigma: Annotated[Amount, within(1e-6)] = (0.1, 2.0)
    p: Probability = 1.0

    def ranges(self, site: Site) -> Sequence[Range]:
        kx, ky, _ = pair(self.kernel_size)
        if kx // 2 >= site.width or ky // 2 >= site.height:
            raise AugmentError(
                f"gaussian_blur: a kernel of {kx} x {ky} needs an image larger than {site.width} x {site.height}"
            )
        return pair(kx), pair(ky), pair(self.sigma), pair(self.sigma)


QUANTILE_STEP = 1.0 / 4096.0  # the table of normal quantiles holds multiples of this


@functools.cache
def noise_quantiles() -> NDArray[np.int16]:
    """The upper half of the normal quantile function at 65,536 points, in steps of `QUANTILE_STEP`: int16 [32768]."""
    points = (np.arange(32768) + 32768.5) / 65536.0
    return np.rint(normal_quantile(points) / QUANTILE_STEP).astype(np.int16)


class GaussianNoise(Op):
    """Adds normal noise to every value, noise truncated to whole levels, the sum clamped. torchvision GaussianNoise.

    mean, sigma: of the range [0, 1] (sigma a number, or a pair to draw from). Noise comes from a table of the normal
    quantile function at 65,536 points, addressed by a hash of the sample's key and the pixel's place.
    """

    name = "gaussian_noise"
    shows: ClassVar = {"sigma": (0.02, 0.2)}
    writes = (Step(GAUSSIAN_NOISE, "noise.gaussian_noise", "noise sigma {3:.2f}", _NOISE),)
    mean: float = Field(0.0, ge=-1, le=1)
    sigma: Annotated[Amount, within(0.0, 10.0)] = 0.1
    p: Probability = 1.0

    def ranges(self, site: Site) -> Sequence[Range]:
        return *RAW_WORDS, pair(self.mean), pair(self.sigma)


class SaltAndPepper(Op):
    """Sets a share of the pixels to white (salt) or black (pepper), all channels alike.

    Impulse noise as in Gonzalez and Woods, "Digital Image Processing", section 5.2.

    amount: probability of a pixel to be hit; a number, or a pair to draw from.
    salt: probability of white among them.
    """

    name = "salt_and_pepper"
    shows: ClassVar = {"amount": (0.01, 0.1)}
    writes = (Step(SALT_AND_PEPPER, "noise.salt_and_pepper", "{2:.1%} hit", _IMPULSES),)
    amount: Annotated[Amount, within(0.0, 1.0)] = 0.02
    salt: Probability = 0.5
    p: Probability = 1.0

    def ranges(self, site: Site) -> Sequence[Range]:
        return *RAW_WORDS, pair(self.amount), pair(self.salt)


def write_erase(codes: Any, args: Any, top: Any, left: Any, height: Any, width: Any, numbers: Any, at: int) -> None:
    """An erasing step: after normalisation where numbers[at] is positive, else with the three levels that follow."""
    codes[0] = ERASE_AFTER if numbers[at] > 0 else ERASE
    args[0] = top
    args[1] = left
    args[2] = height
    args[3] = width
    args[4] = numbers[at + 1]
    args[5] = numbers[at + 2]
    args[6] = numbers[at + 3]


def _box(a: Sequence[float]) -> Lines:
    return f"erase {a[2]:.0f} x {a[3]:.0f}", f"at ({a[0]:.0f}, {a[1]:.0f})"


def _box_after(a: Sequence[float]) -> Lines:
    return *_box(a), "zero after normalisation"


class _Erasing(Op):
    writes = (Step(ERASE, "move.erase", _box), Step(ERASE_AFTER, "erase_after", _box_after))
    value: FillLevels = None

    @property
    def erases(self) -> bool:
        return self.value is None

    def _colour(self, site: Site) -> list[float]:
        if self.value is None:
            return [site.last, *(float(round(v)) for v in site.mean)]
        return [0.0, *fills(self.value)]


class RandomErasing(_Erasing):
    """Erases a rectangle. Zhong et al., "Random erasing data augmentation" (2017); torchvision RandomErasing.

    Ten tries: area uniform in `scale` (share of the image), aspect ratio (height / width) log-uniform in `ratio`, place
    uniform, smaller than the image both ways; where none fits, nothing is erased.

    value: levels to write (0 to 255); null writes 0 *after* normalisation, which is the mean colour. Where an op
        follows that is not such an erasing, null writes the mean colour in place; where the output is uint8, 0.
    """

    name = "random_erasing"
    p: Probability = 0.5
    scale: Share = (0.02, 0.33)
    ratio: Ratio = (0.3, 3.3)

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

    @classmethod
    def example(cls, site: Site) -> Self:
        return cls(p=1.0, value=site.mean)


class Cutout(_Erasing):
    """Erases a square of `size` pixels about a uniform centre, clipped. DeVries and Taylor, "Cutout" (2017).

    value: as in random_erasing.
    """

    name = "cutout"
    size: Size = 16
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

    @classmethod
    def example(cls, site: Site) -> Self:
        return cls(size=min(site.height, site.width) // 2, value=site.mean)
