"""Ops that change colours, one pixel at a time or by the histogram of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from kitae.augment.ops.base import (
    ARGS,
    AUTOCONTRAST,
    BRIGHTNESS,
    CONTRAST,
    EQUALIZE,
    GRAYSCALE,
    HUE,
    INVERT,
    POSTERIZE,
    SATURATION,
    SOLARIZE,
    Argument,
    Factor,
    Op,
    Probability,
    Range,
    Site,
    Step,
    Turn,
    between,
    draw,
    pair,
    span,
    unit,
)

FACTOR = (Argument("factor", meaning="1 keeps the image as it is"),)
_SHIFT = (Argument("factor", low=-0.5, high=0.5, meaning="the shift, in turns"),)
_BITS = (Argument("bits", high=8.0, whole=True, meaning="upper bits that are kept"),)
_THRESHOLD = (Argument("threshold", high=256.0, meaning="levels at or above it are inverted"),)


class _Factor(Op):
    shows: ClassVar = {"amount": 0.5}
    amount: Factor = 0.2
    p: Probability = 1.0

    def ranges(self, site: Site) -> Sequence[Range]:
        return (span(self.amount),)


class Brightness(_Factor):
    """Multiplies by a factor, truncated.

    amount: a number x draws the factor from [max(0, 1 - x), 1 + x], a pair is the range itself.
    """

    name = "brightness"
    writes = (Step(BRIGHTNESS, "color.brightness", "brightness {0:.2f}", FACTOR),)


class Contrast(_Factor):
    """Moves away from the mean of the grey image by a factor, truncated.

    Grey is 0.2989 R + 0.587 G + 0.114 B, floored; its mean is not rounded.

    amount: as in brightness.
    """

    name = "contrast"
    writes = (Step(CONTRAST, "color.contrast", "contrast {0:.2f}", FACTOR),)


class Saturation(_Factor):
    """Moves away from the pixel's own grey (floored) by a factor, truncated.

    An image of one channel is left as it is.

    amount: as in brightness.
    """

    name = "saturation"
    shows: ClassVar = {"amount": 1.0}
    writes = (Step(SATURATION, "color.saturation", "saturation {0:.2f}", FACTOR),)


class Hue(_Factor):
    """Turns the hue in HSV space by a shift in turns.

    An image of one channel is left as it is.

    amount: a number x <= 0.5 draws the shift from [-x, x], a pair is the range itself.
    """

    name = "hue"
    shows: ClassVar = {"amount": 0.2}
    writes = (Step(HUE, "color.hue", "hue {0:+.2f}", _SHIFT),)
    amount: Turn = 0.1

    def ranges(self, site: Site) -> Sequence[Range]:
        return (span(self.amount, 0.0, -0.5),)


class ColorJitter(Op):
    """Brightness, contrast, saturation and hue, each by its own draw, in a random order. torchvision ColorJitter.

    A step that would change nothing is left out.

    brightness, contrast, saturation: a number x draws the factor from [max(0, 1 - x), 1 + x], a pair is the range
        itself.
    hue: a number x <= 0.5 draws the shift (in turns) from [-x, x], a pair is the range itself.
    """

    name = "color_jitter"
    shows: ClassVar = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2}
    writes = (*Brightness.writes, *Contrast.writes, *Saturation.writes, *Hue.writes)
    brightness: Factor = 0.0
    contrast: Factor = 0.0
    saturation: Factor = 0.0
    hue: Turn = 0.0
    p: Probability = 1.0

    @property
    def length(self) -> int:
        return 4

    def numbers(self, site: Site) -> list[float]:
        ranges = [*map(span, (self.brightness, self.contrast, self.saturation)), span(self.hue, 0.0, -0.5)]
        out = [self.p]
        for (low, high, _), neutral in zip(ranges, (1.0, 1.0, 1.0, 0.0), strict=True):
            out += [not low == high == neutral, low, high]
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


class _Maybe(Op):
    p: Probability = 0.5


class Grayscale(_Maybe):
    """All channels become grey, 0.2989 R + 0.587 G + 0.114 B floored. torchvision RandomGrayscale."""

    name = "grayscale"
    writes = (Step(GRAYSCALE, "color.grayscale", takes=()),)
    p: Probability = 0.1


class Invert(_Maybe):
    """255 - level. torchvision RandomInvert."""

    name = "invert"
    writes = (Step(INVERT, "color.invert", takes=()),)


class Posterize(_Maybe):
    """Keeps the upper `bits` bits of each level. torchvision RandomPosterize."""

    name = "posterize"
    shows: ClassVar = {"bits": 3}
    writes = (Step(POSTERIZE, "color.posterize", "posterize {0:.0f} bits", _BITS),)
    bits: int = Field(4, ge=0, le=8)

    def ranges(self, site: Site) -> Sequence[Range]:
        return (pair(self.bits),)


class Solarize(_Maybe):
    """Inverts levels at or above `threshold`. torchvision RandomSolarize."""

    name = "solarize"
    writes = (Step(SOLARIZE, "color.solarize", "solarize {0:.0f}", _THRESHOLD),)
    threshold: float = Field(128.0, ge=0, le=256)

    def ranges(self, site: Site) -> Sequence[Range]:
        return (pair(self.threshold),)


class Autocontrast(_Maybe):
    """Stretches each channel to the full range, truncated. torchvision RandomAutocontrast."""

    name = "autocontrast"
    writes = (Step(AUTOCONTRAST, "filter.autocontrast", takes=()),)


class Equalize(_Maybe):
    """Flattens each channel's histogram by Pillow's step rule. torchvision RandomEqualize."""

    name = "equalize"
    writes = (Step(EQUALIZE, "filter.equalize", takes=()),)
