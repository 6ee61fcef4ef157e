"""The base of ops: a class with parameters, a plan that draws from them, and the rows of the steps that it writes.

A class of `geometry`, `color`, `noise` or `policies` is a frozen, validated set of parameters. It has

    writes       the rows (`Step`) of the steps its plan may write; a step is an op code with up to `ARGS` numbers;
    result       the height and width of the image after it, the same for all samples of a batch;
    numbers      its parameters as a flat list of floats, for images of one size;
    plan         a scalar function from keyed random words and `numbers` to the steps of one sample. A step that it
                 leaves at NOP does not touch that sample.

Most ops toss a coin and draw each number of one step from a range. They share the plan `toss` and only define their
`ranges`.

`plan` is plain scalar arithmetic on flat arrays. Uncompiled, it is the reference; the CPU executor compiles the same
source. Nothing here imports numba or torch, so a recipe is validated without them.

A row names what runs a step: a compiled kernel in `kernels` and its torch twin in `twins`, which have the same module
and function name. The recipe, `functional`, the gallery, `Augment.explain` and the table in the docs read the classes
and rows; a new op is a class, a kernel and a twin.

Definitions are those of torchvision 0.29 `transforms.v2` on uint8 tensors, where it has the op. "Truncated" means
rounded towards zero after clamping to [0, 255]; "rounded" means to the nearest, ties to even.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import AfterValidator, Field, ValidationInfo

from kitae.keyed import TWO_POW_MINUS_32, philox
from kitae.spec import Spec

ARGS = 12  # numbers in a step
MOST_BOXES = 7  # boxes per sample that can be erased after normalisation

# Op codes. They are stored in saved programs, so a code is never reused.
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
CUSTOM = 29  # a user's op or torchvision transform runs here
CODES = 64  # room for codes

MODES = ("zero", "reflect", "edge")

Lines = tuple[str, ...]


class Argument(NamedTuple):
    """A number that the function of a step in `functional` takes, one or one per sample.

    `at` is its place among the step's numbers. The argument `key` fills two places, with 32 bits each.
    """

    name: str
    at: int = 0
    low: float = 0.0
    high: float = math.inf
    default: float | None = None
    whole: bool = False
    meaning: str = ""


class Step(NamedTuple):
    """The row of a step: its code, what runs it, and how it is described.

    Attributes:
        code: its op code.
        run: "module.function", of its kernel in `kernels` and of its twin in `twins`. The function's name is the name
            of the step. Only a name where the executors handle the step themselves.
        words: what it does to a sample, for captions and `Augment.explain`: a format of its numbers, or a function
            from them to short lines; by default its name.
        takes: the arguments of its function in `functional`; None where that is written by hand, or does not exist.
    """

    code: int
    run: str
    words: str | Callable[[Sequence[float]], Lines] = ""
    takes: tuple[Argument, ...] | None = None

    @property
    def name(self) -> str:
        return self.run.rpartition(".")[2]

    @property
    def kernel(self) -> Callable[..., Any] | None:
        """The function that `jit` compiles: (source, target, work, args, channels, height, width) -> 0."""
        return self._function("kernels")

    @property
    def twin(self) -> Callable[..., Any] | None:
        """The torch function: (uint8 [n, C, H, W], `twins.numbers.Numbers`) -> uint8 [n, C, H', W']."""
        return self._function("twins")

    def _function(self, folder: str) -> Callable[..., Any] | None:
        module, _, name = self.run.rpartition(".")
        found = importlib.import_module(f"kitae.augment.{folder}.{module}") if module else None
        return getattr(found, name, None)

    def lines(self, args: Sequence[float]) -> Lines:
        """The step in words: short lines."""
        if callable(self.words):
            return self.words(args)
        return ((self.words or self.name.replace("_", " ")).format(*args),)


@dataclass(frozen=True)
class Site:
    """The images that reach an op of a pipeline.

    Attributes:
        channels, height, width: their shape.
        last: only ops that erase with the mean colour follow, and the output is normalised, so that erasing may write
            after normalisation.
        mean: levels (0 to 255) of the mean colour, zeros where none is known.
    """

    channels: int
    height: int
    width: int
    last: bool = False
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)


# What plans are written with. `key` holds six uint64: index low and high, epoch, first slot, seed low and high.


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


def toss(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
    """The plan most ops share: with probability numbers[0] a step of code numbers[1], each number from its range."""
    w0, w1, w2, w3 = draw(key, 0)
    if unit(w0) < numbers[0]:
        codes[0] = np.int64(numbers[1])
        for i in range(np.int64(numbers[2])):
            word = w1
            if numbers[3 + 3 * i] == 2:
                word = w2
            elif numbers[3 + 3 * i] == 3:
                word = w3
            args[i] = between(word, numbers[4 + 3 * i], numbers[5 + 3 * i])


class Range(NamedTuple):
    """What `toss` draws a number from: uniform in [low, high), by word 1, 2 or 3 of the op's first slot."""

    low: float
    high: float
    word: int = 1


RAW_WORDS = (Range(0.0, 2.0**32, 2), Range(0.0, 2.0**32, 3))  # two whole words, a key for what a kernel draws itself

Amount = float | tuple[float, float]
Fill = float | tuple[float, float, float] | None
Interpolation = Literal["nearest", "bilinear"]
Size = Annotated[int, Field(ge=1, le=2**15)]


def span(value: Amount, centre: float = 1.0, low: float = 0.0) -> Range:
    """The range that a number (centre -+ value, cut at `low`) or a pair (itself) stands for."""
    return Range(max(low, centre - value), centre + value) if isinstance(value, float | int) else Range(*value)


def pair(value: Amount) -> Range:
    """The range that a number (itself alone) or a pair stands for."""
    return Range(value, value) if isinstance(value, float | int) else Range(*value)


def fills(fill: Fill) -> list[float]:
    """A fill as three levels; NaN stands for none."""
    if fill is None:
        return [math.nan] * 3
    return [float(fill)] * 3 if isinstance(fill, float | int) else [float(v) for v in fill]


def checked(fits: Callable[[Any], bool], rule: str) -> AfterValidator:
    """Refuses what does not fit, except null. Errors and the docs state the rule."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if value is not None and not fits(value):
            raise ValueError(f"{info.field_name} must be {rule}, not {value}")
        return value

    check.__doc__ = rule
    return AfterValidator(check)


def in_order(value: Amount, low: float, high: float) -> bool:
    """Whether a number lies in [low, high], or a pair rises in it."""
    a, b, _ = pair(value)
    return low <= a <= b <= high


def _span(low: float, high: float) -> str:
    if math.isfinite(high):
        return f" in [{low:g}, {high:g}]"
    return f" of at least {low:g}" if math.isfinite(low) else ""


def within(low: float, high: float = math.inf, lowest: float | None = None) -> AfterValidator:
    """Checks a number against [low, high], and a pair against [lowest, high] where `lowest` is given."""
    least = low if lowest is None else lowest
    rule = f"a number{'' if lowest is None else _span(low, high)} or a rising pair{_span(least, high)}"
    return checked(lambda value: in_order(value, least if isinstance(value, tuple) else low, high), rule)


def rising(high: float = math.inf) -> AfterValidator:
    """Checks that a pair rises in (0, high]."""
    bounds = f"in (0, {high:g}]" if math.isfinite(high) else "above 0"
    return checked(lambda value: 0 < value[0] <= value[1] <= high, f"a rising pair {bounds}")


Probability = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[Amount, within(0.0)]
Turn = Annotated[Amount, within(0.0, 0.5, -0.5)]
Degrees = Annotated[Amount, within(0.0, math.inf, -math.inf)]
Levels = checked(lambda value: all(0 <= level <= 255 for level in fills(value)), "levels in [0, 255]")
FillLevels = Annotated[Fill, Levels]
Ratio = Annotated[tuple[float, float], rising()]
Share = Annotated[tuple[float, float], rising(1.0)]


class Op(Spec):
    """The base of all ops; see the top of this file for the contract."""

    name: ClassVar[str] = ""
    shows: ClassVar[dict[str, Any]] = {}  # parameters of the op in the gallery
    writes: ClassVar[tuple[Step, ...]] = ()

    # (key, numbers, codes, args, height, width) -> None: writes codes[0 .. length) and args[0 .. length * ARGS)
    plan: ClassVar[Callable[..., Any]] = staticmethod(toss)

    @property
    def length(self) -> int:
        """How many steps of the program this op owns."""
        return 1

    @property
    def erases(self) -> bool:
        """Whether it only erases, and with the mean colour, so that it may do so after normalisation."""
        return False

    def result(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the op."""
        return height, width

    def ranges(self, site: Site) -> Sequence[Range]:
        """What `toss` draws the numbers of the step from, in order."""
        return ()

    def numbers(self, site: Site) -> list[float]:
        """The parameters that `plan` reads, for images of this size.

        Raises:
            AugmentError: the op is impossible at this size.
        """
        ranges = self.ranges(site)
        drawn = (v for r in ranges for v in (r.word, r.low, r.high))
        return [getattr(self, "p", 1.0), self.writes[0].code, len(ranges), *drawn]

    @classmethod
    def example(cls, site: Site) -> Self:
        """The op with parameters that show in a picture what it does: those of `shows`, and p 1."""
        return cls.model_validate(({"p": 1.0} if "p" in cls.model_fields else {}) | cls.shows)
