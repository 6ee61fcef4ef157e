"""The plan: keyed randomness becomes, for each sample, a small program of op codes with numbers.

A program is plain arrays. It can be printed (`describe`), saved, loaded and executed again (`Augment.replay`), by
either executor. `Pipeline` says what a list of ops means for images of one size; `plan_sample` is the plain reference.
"""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae import keyed
from kitae.augment.mix import MIX, mix_numbers, plan_mix
from kitae.augment.ops import (
    AFFINE_BILINEAR,
    AFFINE_NEAREST,
    ARGS,
    AUGMIX_BEGIN,
    BRIGHTNESS,
    CHAIN_END,
    CODE_NAMES,
    CONTRAST,
    CROP,
    ERASE,
    ERASE_AFTER,
    GAUSSIAN_BLUR,
    GAUSSIAN_NOISE,
    HUE,
    MODES,
    MOST_BOXES,
    NOP,
    PERSPECTIVE_BILINEAR,
    PERSPECTIVE_NEAREST,
    POSTERIZE,
    RESIZED_CROP,
    SALT_AND_PEPPER,
    SATURATION,
    SHARPNESS,
    SOLARIZE,
    CustomOp,
    Op,
    Site,
)
from kitae.augment.spec import MixSpec
from kitae.errors import AugmentError
from kitae.files import write_atomically


@dataclass(frozen=True, eq=False)
class Program:
    """What will happen to each sample of a batch.

    Attributes:
        codes: int64 [N, L], op codes, 0 where a step does nothing.
        args: float64 [N, L, 12], their numbers.
        mix: float64 [N, 6] (kind, lambda, x1, y1, x2, y2), or None where nothing mixes.
    """

    codes: NDArray[np.int64]
    args: NDArray[np.float64]
    mix: NDArray[np.float64] | None = None

    def describe(self, row: int, names: Mapping[int, str] | None = None) -> list[str]:
        """The steps of one sample in words; `names` says what users' ops at given steps are called."""
        out = [
            (names or {}).get(step) or describe_step(int(code), self.args[row, step])
            for step, code in enumerate(self.codes[row])
            if code != NOP
        ]
        if self.mix is not None:
            out += describe_mix(self.mix[row])
        return out

    def save(self, path: str | Path) -> None:
        """Write the arrays to an .npz file (no pickle)."""
        arrays: dict[str, Any] = {"codes": self.codes, "args": self.args}
        if self.mix is not None:
            arrays["mix"] = self.mix
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomically(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Read what `save` wrote.

        Raises:
            AugmentError: the file is not a program.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["codes"], file["args"], file.get("mix"))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise AugmentError(f"{path}: not a saved program ({error})") from error


def describe_step(code: int, args: NDArray[np.float64]) -> str:
    """One step in words."""
    a = args.tolist()
    name = CODE_NAMES[code]
    if code == CROP:
        return f"crop {a[2]:.0f} x {a[3]:.0f} at ({a[0]:.0f}, {a[1]:.0f}), outside {MODES[int(a[4])]}"
    if code in (AFFINE_NEAREST, AFFINE_BILINEAR):
        kind = "bilinear" if code == AFFINE_BILINEAR else "nearest"
        return f"affine [{a[0]:.4g} {a[1]:.4g} {a[2]:.4g}; {a[3]:.4g} {a[4]:.4g} {a[5]:.4g}] (output to input), {kind}"
    if code in (PERSPECTIVE_NEAREST, PERSPECTIVE_BILINEAR):
        kind = "bilinear" if code == PERSPECTIVE_BILINEAR else "nearest"
        return f"perspective [{' '.join(f'{v:.4g}' for v in a[:8])}], {kind}"
    if code == RESIZED_CROP:
        return f"crop {a[2]:.0f} x {a[3]:.0f} at ({a[0]:.0f}, {a[1]:.0f}), resized to {a[4]:.0f} x {a[5]:.0f}"
    if code in (BRIGHTNESS, CONTRAST, SATURATION, SHARPNESS):
        return f"{name} times {a[0]:.4f}"
    if code == HUE:
        return f"hue turned by {a[0]:+.4f} of a circle"
    if code == POSTERIZE:
        return f"posterize to {a[0]:.0f} bits"
    if code == SOLARIZE:
        return f"solarize from level {a[0]:.4g}"
    if code == GAUSSIAN_BLUR:
        return f"gaussian_blur {a[0]:.0f} x {a[1]:.0f}, sigma {a[2]:.4f}"
    if code == GAUSSIAN_NOISE:
        return f"gaussian_noise sigma {a[3]:.4f}, mean {a[2]:.4f}"
    if code == SALT_AND_PEPPER:
        return f"salt_and_pepper on {a[2]:.2%} of the pixels"
    if code in (ERASE, ERASE_AFTER):
        what = "zero after normalisation" if code == ERASE_AFTER else f"levels ({a[4]:.0f}, {a[5]:.0f}, {a[6]:.0f})"
        return f"erase {a[2]:.0f} x {a[3]:.0f} at ({a[0]:.0f}, {a[1]:.0f}): {what}"
    if code in (AUGMIX_BEGIN, CHAIN_END):
        return f"{name}: weight {a[0]:.4f}" + (" of the original" if code == AUGMIX_BEGIN else "")
    return name


def describe_mix(mix: NDArray[np.float64]) -> list[str]:
    """Mixing in words; empty where the sample does not mix."""
    kind, share, x1, y1, x2, y2 = mix.tolist()
    if kind == 0:
        return []
    box = f", box rows {y1:.0f} to {y2:.0f}, columns {x1:.0f} to {x2:.0f}" if kind == 2 else ""
    return [f"{'mixup' if kind == 1 else 'cutmix'} with its partner, lambda {share:.4f}{box}"]


class Draw:
    """Keyed randomness for a user's op: one value a sample, by slot.

    The same slot gives the same number; slots 0 to 63 are this op's own.
    """

    def __init__(self, seed: int, epoch: int | NDArray[np.int64], index: NDArray[np.int64], first: int) -> None:
        self.seed, self.epoch, self.index, self._first = seed, epoch, index, first

    def _slot(self, slot: int) -> int:
        if not 0 <= slot < keyed.SLOTS_PER_OP:
            raise AugmentError(f"slot must be in [0, {keyed.SLOTS_PER_OP}), not {slot}")
        return self._first + slot

    def uniform(self, slot: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """float64 [N] in [low, high)."""
        return low + (high - low) * keyed.uniform(self.seed, self.epoch, self.index, self._slot(slot))

    def integers(self, slot: int, low: int, high: int) -> NDArray[np.int64]:
        """int64 [N] in [low, high)."""
        return low + keyed.integers(self.seed, self.epoch, self.index, self._slot(slot), high=high - low)

    def normal(self, slot: int) -> NDArray[np.float64]:
        """float64 [N], standard normal."""
        return keyed.normals(self.seed, self.epoch, self.index, self._slot(slot))[..., 0]

    def seeds(self, slot: int) -> NDArray[np.int64]:
        """int64 [N] in [0, 2**63), for a generator of the op's own."""
        keys = keyed.sort_keys(self.seed, self.epoch, self.index, self._slot(slot))
        return (keys >> np.uint64(1)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A list of ops on images of one size.

    Attributes:
        ops: in order.
        channels, height, width: of the images that enter.
        sizes: height and width before each op, then after the last.
        offsets: first step of each op, then the length of the program.
        numbers: what each op's plan reads, float64.
        slots: first slot of each op.
        mixing: what `plan_mix` reads, or None.
        mixes_batch: whether one mixing is drawn for a whole batch.
    """

    ops: tuple[Op, ...]
    channels: int
    height: int
    width: int
    sizes: tuple[tuple[int, int], ...]
    offsets: tuple[int, ...]
    numbers: tuple[NDArray[np.float64], ...]
    slots: tuple[int, ...]
    mixing: NDArray[np.float64] | None
    mixes_batch: bool = False

    @property
    def steps(self) -> int:
        """Length of the program."""
        return self.offsets[-1]

    @property
    def custom(self) -> tuple[int, ...]:
        """Positions of users' ops."""
        return tuple(k for k, op in enumerate(self.ops) if isinstance(op, CustomOp))

    @classmethod
    def make(
        cls,
        ops: Sequence[Op],
        channels: int,
        height: int,
        width: int,
        mean: Sequence[float] | None = None,
        mix: MixSpec | None = None,
    ) -> Pipeline:
        """The pipeline for images of this size; `mean` (in [0, 1]) is given where the output is normalised.

        Raises:
            AugmentError: an op is impossible at this size.
        """
        levels = [255.0 * m for m in mean] if mean is not None else [0.0]
        colour = (levels * 3)[:3] if len(levels) == 1 else levels
        sizes, offsets, numbers = [(height, width)], [0], []
        for k, op in enumerate(ops):
            h, w = sizes[-1]
            # More boxes than the executors keep for after normalisation are written before it.
            last = mean is not None and all(later.erases for later in ops[k:]) and len(ops) - k <= MOST_BOXES
            site = Site(channels, h, w, last, (colour[0], colour[1], colour[2]))
            numbers.append(np.array(op.numbers(site), np.float64))
            offsets.append(offsets[-1] + op.length)
            sizes.append(op.result(h, w))
        slots: list[int] = []
        before: Counter[str] = Counter()
        for op in ops:
            name = type(op).__qualname__ if isinstance(op, CustomOp) else op.name
            slot = keyed.op_slot(name, before[name])
            before[name] += 1
            while slot in slots:  # two names with the same checksum
                slot += keyed.SLOTS_PER_OP
            slots.append(slot)
        mixing = np.array(mix_numbers(mix), np.float64) if mix is not None and mix.active else None
        return cls(
            tuple(ops), channels, height, width, tuple(sizes), tuple(offsets), tuple(numbers), tuple(slots), mixing,
            mixing is not None and mix is not None and mix.per == "batch",
        )  # fmt: skip

    @classmethod
    def bare(cls, channels: int, size: tuple[int, int], new: tuple[int, int], mixing: bool) -> Pipeline:
        """A pipeline without ops that runs given programs of one step."""
        sizes = (size, new)
        numbers = np.zeros(1) if mixing else None
        return cls((), channels, *size, sizes, (1,), (), (), numbers)

    def segments(self) -> list[Pipeline | tuple[int, CustomOp]]:
        """The pipeline cut at users' ops: what runs in one go, and (position, op) in between; mixing in the last."""
        out: list[Pipeline | tuple[int, CustomOp]] = []
        start = 0
        for k in [*self.custom, len(self.ops)]:
            if k > start or k == len(self.ops):
                offsets = tuple(at - self.offsets[start] for at in self.offsets[start : k + 1])
                height, width = self.sizes[start]
                mixing = self.mixing if k == len(self.ops) else None
                part = Pipeline(
                    self.ops[start:k],
                    self.channels,
                    height,
                    width,
                    self.sizes[start : k + 1],
                    offsets,
                    self.numbers[start:k],
                    self.slots[start:k],
                    mixing,
                    self.mixes_batch,
                )
                out.append(part)
            if k < len(self.ops):
                op = self.ops[k]
                assert isinstance(op, CustomOp)
                out.append((k, op))
            start = k + 1
        return out


def sample_key(seed: int, epoch: int, index: int, slot: int) -> list[np.uint64]:
    """The six words that a plan reads."""
    low = 0xFFFFFFFF
    return [np.uint64(v) for v in (index & low, index >> 32, epoch, slot, seed & low, seed >> 32)]


def plan_sample(pipeline: Pipeline, seed: int, epoch: int, index: int, step: int | None = None) -> Program:
    """The program of one sample, in plain Python: the reference of the compiled plan, bit for bit.

    Args:
        step: keys the mixing of a whole batch; None is the index, as of a batch that starts with this sample.
    """
    codes = np.zeros((1, pipeline.steps), np.int64)
    args = np.zeros((1, pipeline.steps, ARGS), np.float64)
    for k, op in enumerate(pipeline.ops):
        at, end = pipeline.offsets[k], pipeline.offsets[k + 1]
        key = sample_key(seed, epoch, index, pipeline.slots[k])
        op.plan(key, pipeline.numbers[k], codes[0, at:end], args[0, at:end].reshape(-1), *pipeline.sizes[k])
    mix = None
    if pipeline.mixing is not None:
        mix = np.zeros((1, MIX))
        key = sample_key(seed, epoch, index if step is None or not pipeline.mixes_batch else step, keyed.SLOT_MIX)
        plan_mix(key, pipeline.mixing, mix[0], *pipeline.sizes[-1])
    return Program(codes, args, mix)
