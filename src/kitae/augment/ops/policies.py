"""Policies: ops that choose among ops. Their tables are those of the papers, their numerics those of torchvision 0.29.

| op | AutoAugment (10 magnitudes), RandAugment (31) | TrivialAugmentWide (31) | signed |
|---|---|---|---|
| shear_x, shear_y | 0 to 0.3 | 0 to 0.99 | yes |
| translate_x, translate_y | 0 to 150/331 of the side | 0 to 32 px | yes |
| rotate | 0 to 30 degrees | 0 to 135 degrees | yes |
| brightness, color, contrast, sharpness | 1 -+ (0 to 0.9) | 1 -+ (0 to 0.99) | yes |
| posterize | 8 to 4 bits | 8 to 2 bits | |
| solarize | threshold 255 to 0 | same | |
| autocontrast, equalize, invert, identity | | | |

Shear pivots at the top left corner with slope = magnitude, translation truncates to whole pixels, a sign is negative
with probability 1/2. By default warps are nearest and without a fill colour (black).
"""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, model_validator

from kitae.augment.ops.base import (
    AFFINE_NEAREST,
    ARGS,
    AUGMIX_BEGIN,
    AUGMIX_END,
    CHAIN_BEGIN,
    CHAIN_END,
    FillLevels,
    Interpolation,
    Op,
    Site,
    Step,
    below,
    draw,
    unit,
)
from kitae.augment.ops.color import (
    Autocontrast,
    Brightness,
    Contrast,
    Equalize,
    Invert,
    Posterize,
    Saturation,
    Solarize,
)
from kitae.augment.ops.geometry import AFFINE_STEPS, start_warp, warp_numbers, write_affine
from kitae.augment.ops.noise import Sharpness

IDENTITY, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE, BRIGHTER, COLOR, CONTRASTED, SHARPER = range(10)
POSTERIZED, SOLARIZED, AUTOCONTRASTED, EQUALIZED, INVERTED = range(10, 15)
SIGNED = SHARPER  # ids 1 to this have a sign

POLICY_OPS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize", "invert",
)  # fmt: skip


@functools.cache
def table(policy: str) -> list[tuple[tuple[str, float, int | None], ...]]:
    """The sub-policies of AutoAugment: 25 times two of (op, probability, magnitude index or None)."""
    tables = yaml.safe_load(Path(__file__).with_name("auto_augment.yaml").read_text(encoding="utf-8"))
    subs = ([step.split() for step in sub.split(",")] for sub in tables[policy])
    return [tuple((op, int(p) / 10, None if m == "-" else int(m)) for op, p, m in steps) for steps in subs]


def ramp(start: float, end: float, steps: int) -> NDArray[np.float64]:
    """torch.linspace(start, end, steps) in float32, to the bit: from both ends inwards with fused multiply-add."""
    a, b = np.float32(start), np.float32(end)
    if steps == 1:
        return np.array([a], np.float64)
    step = np.float64((b - a) / np.float32(steps - 1))
    at = np.arange(steps, dtype=np.float64)
    up, down = np.float64(a) + step * at, np.float64(b) - step * (steps - 1 - at)
    return np.where(at < steps // 2, up, down).astype(np.float32).astype(np.float64)


def magnitudes(kind: str, op: int, bins: int, height: int, width: int) -> NDArray[np.float64]:
    """The magnitudes of an op of a policy: float64 [bins]; zeros where it has none.

    kind: `standard` (AutoAugment, RandAugment), `wide` (TrivialAugment) or `augmix`.
    """
    wide = kind == "wide"
    # A third of the side for AugMix, 150/331 (of ImageNet's 331 px nets) for the rest, 32 px for the wide space.
    if op in (SHEAR_X, SHEAR_Y):
        return ramp(0.0, 0.99 if wide else 0.3, bins)
    if op in (TRANSLATE_X, TRANSLATE_Y):
        side = width if op == TRANSLATE_X else height
        return ramp(0.0, 32.0 if wide else (side / 3.0 if kind == "augmix" else 150.0 / 331.0 * side), bins)
    if op == ROTATE:
        return ramp(0.0, 135.0 if wide else 30.0, bins)
    if op in (BRIGHTER, COLOR, CONTRASTED, SHARPER):
        return ramp(0.0, 0.99 if wide else 0.9, bins)
    if op == POSTERIZED:
        first, lost = (4, 4) if kind == "augmix" else (8, 6 if wide else 4)
        steps = np.arange(bins, dtype=np.float32) / np.float32(max(bins - 1, 1) / lost)
        return np.asarray(np.rint(np.float32(first) - steps), np.float64)
    if op == SOLARIZED:
        return ramp(1.0, 0.0, bins)
    return np.zeros(bins)


# The step of each op from BRIGHTER on, and its code.
_STEPS = tuple(
    op.writes[0]
    for op in (Brightness, Saturation, Contrast, Sharpness, Posterize, Solarize, Autocontrast, Equalize, Invert)
)
CODES = tuple(step.code for step in _STEPS)


def write_policy_op(op: Any, magnitude: Any, sign: Any, codes: Any, args: Any, step: Any, height: Any, width: Any,
                    numbers: Any) -> None:  # fmt: skip
    """One op of a policy as a step. `sign`: the word that decides it; `numbers` begin as `start_warp` reads them."""
    if op <= SIGNED and unit(sign) < 0.5:
        magnitude = -magnitude
    at = step * ARGS
    if op >= BRIGHTER:
        codes[step] = CODES[op - BRIGHTER]
        if op <= SHARPER:
            args[at] = 1.0 + magnitude
        elif op == SOLARIZED:
            args[at] = 255.0 * magnitude
        else:
            args[at] = magnitude
    elif op != IDENTITY:
        start_warp(numbers, codes, args, step, at + 6)
        if op == SHEAR_X:
            write_affine(args, at, 0.0, 0.0, 0.0, 1.0, math.atan(magnitude), 0.0, -0.5 * width, -0.5 * height)
        elif op == SHEAR_Y:
            write_affine(args, at, 0.0, 0.0, 0.0, 1.0, 0.0, math.atan(magnitude), -0.5 * width, -0.5 * height)
        elif op == TRANSLATE_X:
            write_affine(args, at, 0.0, np.trunc(magnitude), 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
        elif op == TRANSLATE_Y:
            write_affine(args, at, 0.0, 0.0, np.trunc(magnitude), 1.0, 0.0, 0.0, 0.0, 0.0)
        else:
            write_affine(args, at, -math.radians(magnitude), 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)


class _Policy(Op):
    writes: ClassVar[tuple[Step, ...]] = (*AFFINE_STEPS, *_STEPS)
    interpolation: Interpolation = "nearest"
    fill: FillLevels = None

    def _warp(self) -> list[float]:
        return warp_numbers(AFFINE_NEAREST, self.interpolation, self.fill)


class AutoAugment(_Policy):
    """One of 25 sub-policies, uniformly: two ops, each with its probability and magnitude.

    Cubuk et al., "AutoAugment: Learning augmentation policies from data" (2018).

    policy: the data set on which it was found.
    """

    name = "auto_augment"
    policy: Literal["cifar10", "imagenet", "svhn"] = "imagenet"

    @property
    def length(self) -> int:
        return 2

    def numbers(self, site: Site) -> list[float]:
        out = self._warp()
        for sub in table(self.policy):
            for name, p, m in sub:
                op = POLICY_OPS.index(name)
                size = 0.0 if m is None else magnitudes("standard", op, 10, site.height, site.width)[m]
                out += [op, p, size]
        return out

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, _, _, _ = draw(key, 0)
        a0, s0, a1, s1 = draw(key, 1)
        at = 4 + 6 * below(w0, 25)
        for step in range(2):
            if unit(a0) < numbers[at + 1]:
                write_policy_op(np.int64(numbers[at]), numbers[at + 2], s0, codes, args, step, height, width, numbers)
            at += 3
            a0 = a1
            s0 = s1


class RandAugment(_Policy):
    """`num_ops` ops, each uniform among 14 (with replacement), all of one magnitude.

    Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space" (2019).

    magnitude: an index into `num_magnitude_bins` steps from none to the table's largest.
    """

    name = "rand_augment"
    num_ops: int = Field(2, ge=0, le=16)
    magnitude: int = Field(9, ge=0)
    num_magnitude_bins: int = Field(31, ge=2, le=1000)

    @model_validator(mode="after")
    def _within(self) -> RandAugment:
        if self.magnitude >= self.num_magnitude_bins:
            raise ValueError(
                f"magnitude must be below num_magnitude_bins ({self.num_magnitude_bins}), not {self.magnitude}"
            )
        return self

    @property
    def length(self) -> int:
        return max(self.num_ops, 1)

    def numbers(self, site: Site) -> list[float]:
        sizes = [
            magnitudes("standard", op, self.num_magnitude_bins, site.height, site.width)[self.magnitude]
            for op in range(INVERTED)
        ]
        return [*self._warp(), self.num_ops, *sizes]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        for step in range(np.int64(numbers[4])):
            w0, w1, _, _ = draw(key, step)
            op = below(w0, INVERTED)
            write_policy_op(op, numbers[5 + op], w1, codes, args, step, height, width, numbers)


class TrivialAugmentWide(_Policy):
    """One op uniform among 14, its magnitude uniform among `num_magnitude_bins`, from the wide space.

    Müller and Hutter, "TrivialAugment: Tuning-free yet state-of-the-art data augmentation" (2021).
    """

    name = "trivial_augment_wide"
    num_magnitude_bins: int = Field(31, ge=2, le=1000)

    def numbers(self, site: Site) -> list[float]:
        bins = self.num_magnitude_bins
        out = [*self._warp(), bins]
        for op in range(INVERTED):
            out += magnitudes("wide", op, bins, site.height, site.width).tolist()
        return out

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        w0, w1, w2, _ = draw(key, 0)
        bins = np.int64(numbers[4])
        op = below(w0, INVERTED)
        magnitude = numbers[5 + op * bins + below(w1, bins)]
        write_policy_op(op, magnitude, w2, codes, args, 0, height, width, numbers)


# AugMix's own order: the first nine always, the four colour ops where `all_ops`.
_AUGMIX_OPS = (
    SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE, POSTERIZED, SOLARIZED, AUTOCONTRASTED, EQUALIZED,
    BRIGHTER, COLOR, CONTRASTED, SHARPER,
)  # fmt: skip
QUANTILE_KNOTS = 4096


@functools.lru_cache(maxsize=64)
def beta_table(a: float, b: float) -> tuple[float, ...]:
    """What `beta_quantile` reads: the power of its grid (0 for the uniform), then quantiles of Beta(a, b).

    The grid in u is v**p / (v**p + (1 - v)**p) at equidistant v, with p = 2 max(a, b, 1), so that the quantile
    function is smooth in v at both ends. Linear interpolation on 4,096 cells: within 1e-5 of scipy's betaincinv for
    parameters in [0.04, 60], within 2e-4 up to 1000, tested.
    """
    if a == b == 1.0:
        return (0.0,)
    from scipy.special import betaincinv

    p = min(2.0 * max(a, b, 1.0), 1000.0)  # above, v**p and (1 - v)**p would both vanish in the middle
    v = np.arange(QUANTILE_KNOTS + 1) / QUANTILE_KNOTS
    up, down = v**p, (1.0 - v) ** p
    # scipy has no answer (NaN) for some u below 1e-150, where the quantile is 0 for all purposes.
    return (p, *np.nan_to_num(betaincinv(a, b, up / (up + down))).tolist())


def beta_quantile(u: Any, numbers: Any, at: Any) -> Any:
    """The quantile of Beta(a, b) at u, from a table of `beta_table` at numbers[at]."""
    p = numbers[at]
    if p == 0.0:
        return u
    up = u ** (1.0 / p)
    down = (1.0 - u) ** (1.0 / p)
    v = up / (up + down) * QUANTILE_KNOTS
    cell = min(np.int64(v), QUANTILE_KNOTS - 1)
    low = numbers[at + 1 + cell]
    return low + (numbers[at + 2 + cell] - low) * (v - cell)


class AugMix(_Policy):
    """A weighted mean of the image and of `mixture_width` chains of ops, truncated. torchvision AugMix.

    Hendrycks et al., "AugMix: A simple data processing method to improve robustness and uncertainty" (2019): m ~
    Beta(alpha, alpha), w ~ Dirichlet(alpha, ...), result = m image + (1 - m) sum of w chain; each chain has
    `chain_depth` ops (-1: 1 to 3, uniform) at a magnitude uniform among the first `severity` of ten.

    all_ops: also brightness, contrast, saturation and sharpness, which are among the corruptions of ImageNet-C.
    interpolation, fill: of the ops that move pixels, as in rotate.
    """

    name = "augmix"
    writes = (
        *_Policy.writes,
        Step(AUGMIX_BEGIN, "filter.augmix_begin", "augmix, weight of the original {0:.2f}"),
        Step(CHAIN_BEGIN, "chain_begin", "chain"),
        Step(CHAIN_END, "filter.chain_end", "end of chain, weight {0:.2f}"),
        Step(AUGMIX_END, "filter.augmix_end", "end of augmix"),
    )
    severity: int = Field(3, ge=1, le=10)
    mixture_width: int = Field(3, ge=1, le=8)
    chain_depth: Literal[-1, 1, 2, 3, 4, 5] = -1
    alpha: float = Field(1.0, gt=0, le=100)
    all_ops: bool = True
    interpolation: Interpolation = "bilinear"

    @property
    def deepest(self) -> int:
        """Most ops of a chain."""
        return 3 if self.chain_depth < 0 else self.chain_depth

    @property
    def length(self) -> int:
        return 2 + self.mixture_width * (self.deepest + 2)

    def numbers(self, site: Site) -> list[float]:
        ops = _AUGMIX_OPS if self.all_ops else _AUGMIX_OPS[:9]
        out = [*self._warp(), self.severity, self.mixture_width, self.chain_depth, self.deepest, len(ops)]
        for op in ops:
            out += [op, *magnitudes("augmix", op, 10, site.height, site.width).tolist()]
        # A Dirichlet by breaking a stick: piece i of the rest is Beta(alpha, alpha * pieces left).
        tables = [beta_table(self.alpha, self.alpha * left) for left in range(self.mixture_width - 1, 0, -1)]
        tables.insert(0, beta_table(self.alpha, self.alpha))
        starts = itertools.accumulate(map(len, tables[:-1]), initial=len(out) + len(tables))
        return [*out, *map(float, starts), *(x for t in tables for x in t)]

    @staticmethod
    def plan(key: Any, numbers: Any, codes: Any, args: Any, height: Any, width: Any) -> None:
        chains = np.int64(numbers[5])
        deepest = np.int64(numbers[7])
        ops = np.int64(numbers[8])
        tables = 9 + ops * 11
        w0, _, _, _ = draw(key, 0)
        m = beta_quantile(unit(w0), numbers, np.int64(numbers[tables]))
        codes[0] = AUGMIX_BEGIN
        args[0] = m
        step: Any = 1
        rest = 1.0 - m
        slot: Any = 1
        for chain in range(chains):
            d0, d1, _, _ = draw(key, slot)
            slot += 1
            depth = np.int64(numbers[6])
            if depth < 0:
                depth = 1 + below(d0, 3)
            share = 1.0
            if chain < chains - 1:
                share = beta_quantile(unit(d1), numbers, np.int64(numbers[tables + 1 + chain]))
            codes[step] = CHAIN_BEGIN
            for link in range(deepest):
                if link < depth:
                    w0, w1, w2, _ = draw(key, slot + link)
                    entry = 9 + 11 * below(w0, ops)
                    magnitude = numbers[entry + 1 + below(w1, numbers[4])]
                    op = np.int64(numbers[entry])
                    write_policy_op(op, magnitude, w2, codes, args, step + 1 + link, height, width, numbers)
            slot += deepest
            step += deepest + 1
            codes[step] = CHAIN_END
            args[step * ARGS] = rest * share
            rest = rest * (1.0 - share)
            step += 1
        codes[step] = AUGMIX_END
