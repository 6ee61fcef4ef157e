"""The plan: turns keyed randomness into a small program of op codes and numbers for each sample.

A program consists of plain arrays. It can be printed (`describe`), saved, loaded and executed again
(`Augment.replay`), by either executor. `Pipeline` is a list of ops prepared for images of one size; `plan_sample` is
the plain reference.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kitae import keyed
from kitae.augment.mix import CUTMIX, MIX, MIXUP, mix_numbers, plan_mix
from kitae.augment.ops import STEPS, CustomOp, Op, Site
from kitae.augment.ops.base import ARGS, MOST_BOXES, NOP
from kitae.augment.spec import MixSpec
from kitae.errors import AugmentError
from kitae.files import user_path, write_atomically


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
        """The steps of one sample in words; `names` are the names of users' ops by step."""
        out = [
            (names or {}).get(step) or ", ".join(STEPS[code].lines(self.args[row, step].tolist()))
            for step, code in enumerate(self.codes[row].tolist())
            if code != NOP
        ]
        kind, share, x1, y1, x2, y2 = [0.0] * MIX if self.mix is None else self.mix[row].tolist()
        if kind == MIXUP:
            out.append(f"mixup with its partner, lambda {share:.4f}")
        elif kind == CUTMIX:
            box = f"box rows {y1:.0f} to {y2:.0f}, columns {x1:.0f} to {x2:.0f}"
            out.append(f"cutmix with its partner, lambda {share:.4f}, {box}")
        return out

    def save(self, path: str | Path) -> None:
        """Write the arrays to an .npz file (no pickle)."""
        arrays: dict[str, Any] = {"codes": self.codes, "args": self.args}
        if self.mix is not None:
            arrays["mix"] = self.mix
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomically(user_path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Read what `save` wrote.

        Raises:
            AugmentError: the file is not a program.
        """
        try:
            with np.load(user_path(path), allow_pickle=False) as file:
                return cls(file["codes"], file["args"], file.get("mix"))
        except Exception as error:  # a damaged file stops zipfile, zlib and NumPy in a dozen ways
            raise AugmentError(f"{path}: not a saved program ({error})") from error


@dataclass(frozen=True, eq=False)
class Pipeline:
    """A list of ops on images of one size.

    Attributes:
        ops: in order.
        channels: of the images.
        sizes: height and width before each op, then after the last.
        offsets: first step of each op, then the length of the program.
        numbers: what each op's plan reads, float64.
        slots: first slot of each op.
        mixing: what `plan_mix` reads, or None.
        mixes_batch: whether one mixing is drawn for a whole batch.
        scale, shift: of the three channels: the normalised value is level * scale + shift.
    """

    ops: tuple[Op, ...]
    channels: int
    sizes: tuple[tuple[int, int], ...]
    offsets: tuple[int, ...]
    numbers: tuple[NDArray[np.float64], ...]
    slots: tuple[int, ...]
    mixing: NDArray[np.float64] | None
    mixes_batch: bool
    scale: tuple[float, ...]
    shift: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Length of the program."""
        return self.offsets[-1]

    @classmethod
    def make(
        cls,
        ops: Sequence[Op],
        channels: int,
        height: int,
        width: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        mix: MixSpec | None = None,
    ) -> Pipeline:
        """The pipeline for images of this size; `mean` and `std` (in [0, 1]) are given where the output is normalised.

        Raises:
            AugmentError: an op is impossible at this size.
        """
        m0, m1, m2 = (tuple(mean or (0.0,)) * 3)[:3]
        sizes, offsets, numbers = [(height, width)], [0], []
        slots: list[int] = []
        before: Counter[str] = Counter()
        for k, op in enumerate(ops):
            h, w = sizes[-1]
            # Boxes beyond the number that the executors keep for after normalisation are erased before it, and so are
            # those that a later box of another colour may cover.
            last = mean is not None and all(later.erases for later in ops[k:]) and len(ops) - k <= MOST_BOXES
            site = Site(channels, h, w, last, (255.0 * m0, 255.0 * m1, 255.0 * m2))
            numbers.append(np.array(op.numbers(site), np.float64))
            offsets.append(offsets[-1] + op.length)
            sizes.append(op.result(h, w))
            name = type(op).__qualname__ if isinstance(op, CustomOp) else op.name
            slot = keyed.op_slot(name, before[name])
            before[name] += 1
            while slot in slots:  # two names with the same checksum
                slot += keyed.SLOTS_PER_OP
            slots.append(slot)
        spread = (tuple(std or (1.0 / 255.0,)) * 3)[:3]
        return cls(
            tuple(ops),
            channels,
            tuple(sizes),
            tuple(offsets),
            tuple(numbers),
            tuple(slots),
            mixing=np.array(mix_numbers(mix), np.float64) if mix is not None and mix.active else None,
            mixes_batch=mix is not None and mix.per == "batch",
            scale=tuple(1.0 / (255.0 * s) for s in spread),
            shift=tuple(-m / s for m, s in zip((m0, m1, m2), spread, strict=True)),
        )

    def segments(self) -> list[Pipeline | Custom]:
        """The pipeline split at users' ops; the last part is a pipeline, and mixes."""
        out: list[Pipeline | Custom] = []
        start = 0
        for k, op in enumerate([*self.ops, None]):
            if op is not None and not isinstance(op, CustomOp):
                continue
            if k > start or op is None:
                part = replace(
                    self,
                    ops=self.ops[start:k],
                    sizes=self.sizes[start : k + 1],
                    offsets=tuple(at - self.offsets[start] for at in self.offsets[start : k + 1]),
                    numbers=self.numbers[start:k],
                    slots=self.slots[start:k],
                    mixing=self.mixing if op is None else None,
                )
                out.append(part)
            if op is not None:
                out.append(Custom(op, self.slots[k], self.sizes[k + 1]))
            start = k + 1
        return out


class Custom(NamedTuple):
    """A user's op in a pipeline: its first slot, and the height and width after it."""

    op: CustomOp
    slot: int
    size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Keys:
    """What the draws of a batch are keyed by, besides the seed.

    Attributes:
        epoch: in [0, 2**32), of all samples, or int64 [N].
        index: int64 [N] in [0, 2**63).
        step: of what is drawn once for the whole batch.
    """

    epoch: int | NDArray[np.int64]
    index: NDArray[np.int64]
    step: int


def sample_key(seed: int, epoch: int, index: int, slot: int) -> list[np.uint64]:
    """The six words that a plan reads."""
    low = 0xFFFFFFFF
    return [np.uint64(v) for v in (index & low, index >> 32, epoch, slot, seed & low, seed >> 32)]


def plan_sample(pipeline: Pipeline, seed: int, epoch: int, index: int, step: int) -> Program:
    """The program of one sample, in plain Python: the reference of the compiled plan, bit for bit.

    Args:
        step: the key of what is drawn once for the whole batch.
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
        key = sample_key(seed, epoch, step if pipeline.mixes_batch else index, keyed.SLOT_MIX)
        plan_mix(key, pipeline.mixing, mix[0], *pipeline.sizes[-1])
    return Program(codes, args, mix)
