"""Random resized crops read straight from a store of whole pictures, or from encoded images in shards.

The op sees each picture at its own size and aspect ratio, as torchvision's RandomResizedCrop sees a decoded file, and
its window is resized in one step. The draw and the kernel are those of the op; only the source of the pixels differs.
For encoded images the draw is the same, at their original size; Pillow decodes them, and the kernel resizes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae import keyed
from kitae.augment.cpu import take
from kitae.augment.kernels.move import copy_bytes, planes
from kitae.augment.kernels.resize import resized_crop, work_bytes
from kitae.augment.ops import Op
from kitae.augment.ops.base import ARGS
from kitae.augment.ops.geometry import RandomResizedCrop
from kitae.augment.plan import sample_key
from kitae.augment.spec import AugmentSpec
from kitae.data.encoded import Encoded
from kitae.data.pictures import Pictures
from kitae.native import jit
from kitae.native.link import PLAN, RUN, WINDOW, as_f64, as_i64, as_u8, as_u64
from kitae.native.share import share

# Not the op's own slot: a second crop later in the pipeline uses that.
SLOT = keyed.op_slot("random_resized_crop of whole pictures")

plan_crop = RandomResizedCrop.plan

# The context of a call: int64, addresses and sizes.
FIRST, LAST = 0, 1  # samples of this thread
PIXELS, STARTS, HEIGHTS, WIDTHS, CHANNELS = 2, 3, 4, 5, 6
ROWS, INDEX, EPOCH, SEED_LOW, SEED_HIGH, SLOT_AT = 7, 8, 9, 10, 11, 12
NUMBERS, OUT, STRIDE = 13, 14, 15
WORK_AT = 16  # where in the scratch the work area of the kernel begins
CONTEXT = 17

# Scratch of a thread, in bytes: the key, the step, the window, the work area.
STEP_AT, WINDOW_AT = 64, 512


def crop_samples(context_at: Any, scratch: Any) -> Any:
    """Plan and cut samples FIRST to LAST."""
    c = as_i64(context_at)
    key = as_u64(scratch)
    codes = as_i64(scratch + STEP_AT)
    args = as_f64(scratch + STEP_AT + 8)
    starts = as_i64(c[STARTS])
    heights = as_i64(c[HEIGHTS])
    widths = as_i64(c[WIDTHS])
    rows = as_i64(c[ROWS])
    index = as_u64(c[INDEX])
    channels = c[CHANNELS]
    window = scratch + WINDOW_AT
    work = scratch + c[WORK_AT]
    key[2] = np.uint64(c[EPOCH])
    key[3] = np.uint64(c[SLOT_AT])
    key[4] = np.uint64(c[SEED_LOW])
    key[5] = np.uint64(c[SEED_HIGH])
    for n in range(c[FIRST], c[LAST]):
        key[0] = index[n] & np.uint64(0xFFFFFFFF)
        key[1] = index[n] >> np.uint64(32)
        row = rows[n]
        height = heights[row]
        width = widths[row]
        plan_crop(key, as_f64(c[NUMBERS]), codes, args, height, width)
        # The window is copied line by line first, since the kernel's access by blocks is slow on cold memory.
        tall = np.int64(args[2])
        wide = np.int64(args[3])
        source = c[PIXELS] + starts[row] + np.int64(args[0]) * width + np.int64(args[1])
        target = window
        for _ in range(channels):
            for y in range(tall):
                copy_bytes(source + y * width, target, wide)
                target += wide
            source += height * width
        args[0] = 0.0
        args[1] = 0.0
        resized_crop(as_u8(window), as_u8(c[OUT] + n * c[STRIDE]), work, args, channels, tall, wide)
    return 0


def cut_window(source: Any, line: Any, pixel: Any, channels: Any, height: Any, width: Any, target: Any, new_height: Any,
               new_width: Any, scratch: Any) -> Any:  # fmt: skip
    """Resize a window [height, width, channels] to [channels, new_height, new_width].

    `line` and `pixel` are the bytes from a row and a pixel of the window to the next.
    """
    args = as_f64(scratch)
    args[0] = 0.0
    args[1] = 0.0
    args[2] = height
    args[3] = width
    args[4] = new_height
    args[5] = new_width
    window = scratch + WINDOW_AT
    planes(source, window, line, pixel, channels, height, width)
    work = (window + channels * height * width + 63) & ~63
    resized_crop(as_u8(window), as_u8(target), work, args, channels, height, width)
    return 0


def first_crop(
    spec: AugmentSpec, images: NDArray[np.uint8] | Pictures | Encoded, threads: int
) -> tuple[PictureCrop | EncodedCrop | None, tuple[Op, ...]]:
    """What reads training images from a store, and the ops that follow.

    Returns:
        If the store has whole pictures or encoded images and the first op is a random resized crop: that op as a
        `PictureCrop` or an `EncodedCrop`, and the other ops. Otherwise None and all ops.
    """
    ops = spec.ops()
    if isinstance(images, np.ndarray) or not ops or not isinstance(ops[0], RandomResizedCrop):
        return None, ops
    kind = EncodedCrop if isinstance(images, Encoded) else PictureCrop
    return kind(ops[0], images, threads), ops[1:]


class _Scratch:
    """Reused scratch memory of threads. Fresh memory takes nearly as long as the crops, since the system clears it."""

    def __init__(self, threads: int) -> None:
        self._free: deque[tuple[NDArray[np.uint8], int]] = deque(maxlen=threads)

    @contextmanager
    def borrowed(self, size: int) -> Iterator[int]:
        """The 64-byte aligned address of memory for this thread alone; `size` includes 64 bytes for the alignment."""
        try:
            memory, at = self._free.pop()
        except IndexError:
            memory, at = np.empty(0, np.uint8), 0
        if len(memory) < size:
            memory = np.empty(size, np.uint8)
            at = memory.ctypes.data
        yield at + -at % 64
        self._free.append((memory, at))


class _Crop:
    """What reads windows out of a store.

    Args:
        op: what to draw; its result has the size of what the network sees, unless it names one.
        images: where to read.
        threads: number of threads that share a call.
    """

    def __init__(self, op: RandomResizedCrop, images: Pictures | Encoded, threads: int) -> None:
        channels, height, width = images.shape[1:]
        self.shape = (channels, *op.result(height, width))
        self._threads = threads
        self._numbers = np.array([*self.shape[1:], *op.scale, *op.ratio], np.float64)
        self._scratch = _Scratch(threads)


class PictureCrop(_Crop):
    """Cuts a keyed window out of each picture and resizes it, bilinear with antialias."""

    def __init__(self, op: RandomResizedCrop, pictures: Pictures, threads: int) -> None:
        super().__init__(op, pictures, threads)
        channels = self.shape[0]
        # Kept, as their memory is read by address.
        self._arrays = (pictures.pixels, pictures.starts, pictures.heights, pictures.widths)
        largest = int((pictures.heights * pictures.widths).max())
        work_at = (WINDOW_AT + channels * largest + 127) & ~63
        work = work_bytes(int(pictures.heights.max()), int(pictures.widths.max()), *self.shape[1:])
        self._scratch_bytes = work_at + work + 64
        self._context = c = np.zeros(CONTEXT, np.int64)
        c[[PIXELS, STARTS, HEIGHTS, WIDTHS]] = [array.ctypes.data for array in self._arrays]
        c[CHANNELS], c[STRIDE], c[WORK_AT] = channels, int(np.prod(self.shape)), work_at
        c[NUMBERS], c[SLOT_AT] = self._numbers.ctypes.data, SLOT

    def __call__(self, rows: NDArray[np.int64], index: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.uint8]:
        """Training images, a pure function of (seed, epoch, index) and the pictures.

        Args:
            rows: int64 [b], which pictures.
            index: int64 [b], what keys each.

        Returns:
            uint8 [b, C, H, W].
        """
        rows, index = (np.ascontiguousarray(array, np.int64) for array in (rows, index))
        out = take((len(rows), *self.shape), np.uint8)
        context = self._context.copy()
        context[[ROWS, INDEX, OUT]] = [array.ctypes.data for array in (rows, index, out)]
        context[[EPOCH, SEED_LOW, SEED_HIGH]] = epoch, seed & 0xFFFFFFFF, seed >> 32
        run = jit.native(crop_samples, RUN).ctypes  # without the interpreter lock

        # More parts than threads, since pictures differ in size and cores in their other load.
        ends = np.linspace(0, len(rows), min(4 * self._threads, len(rows)) + 1).astype(np.int64)

        def work(part: int) -> None:
            own = context.copy()
            own[[FIRST, LAST]] = ends[part : part + 2]
            with self._scratch.borrowed(self._scratch_bytes) as at:
                run(own.ctypes.data, at)

        share(len(ends) - 1, work, self._threads)
        return out


class EncodedCrop(_Crop):
    """Cuts a keyed window out of each encoded image, as it is decoded."""

    def __init__(self, op: RandomResizedCrop, images: Encoded, threads: int) -> None:
        super().__init__(op, images, threads)
        self._images = images

    def __call__(self, rows: NDArray[np.int64], index: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.uint8]:
        """Training images uint8 [b, C, H, W]. Arguments as of `PictureCrop`."""
        plan, cut = jit.by_address(plan_crop, PLAN), jit.by_address(cut_window, WINDOW)
        new_height, new_width = self.shape[1:]
        out = take((len(rows), *self.shape), np.uint8)
        keys = np.tile(np.array(sample_key(seed, epoch, 0, SLOT)), (len(rows), 1))
        keys[:, 0], keys[:, 1] = index & 0xFFFFFFFF, index >> 32
        codes, args = np.zeros((len(rows), 1), np.int64), np.zeros((len(rows), ARGS))
        # Of arrays of the whole batch, since small ones for each image take longer than the plan.
        (keys_at, key), (codes_at, code), (args_at, step), (out_at, image) = (
            (array.ctypes.data, array.strides[0]) for array in (keys, codes, args, out)
        )
        numbers = self._numbers.ctypes.data

        def window(place: int, height: int, width: int) -> tuple[int, int, int, int]:
            plan(keys_at + place * key, numbers, codes_at + place * code, args_at + place * step, height, width)
            top, left, tall, wide = map(int, args[place, :4].tolist())
            return top, left, tall, wide

        def use(place: int, pixels: NDArray[np.uint8]) -> None:
            height, width, channels = pixels.shape
            needed = WINDOW_AT + pixels.size + 64 + work_bytes(height, width, new_height, new_width)
            source, target = (pixels.ctypes.data, *pixels.strides[:2]), out_at + place * image
            with self._scratch.borrowed(needed + 64) as scratch:
                cut(*source, channels, height, width, target, new_height, new_width, scratch)

        self._images.cut(rows, self.shape[1:], window, use, self._threads)
        return out
