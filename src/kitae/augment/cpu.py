"""The CPU executor: compiled kernels, run by a few plain threads that hold no lock.

A call fills one array of addresses and sizes, the context, and lets each thread run `kernels.run.run` on it. There are no
worker processes and no threading layer; memory of results is used again once nobody refers to it any more, since touching
fresh pages would take longer than augmenting.
"""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import threading
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae.augment import jit
from kitae.augment.kernels import color, move
from kitae.augment.kernels import run as driver
from kitae.augment.kernels.link import FINISH, OP, PLAN, RUN
from kitae.augment.kernels.write import FINISHERS
from kitae.augment.ops import (
    BRIGHTNESS,
    CODES,
    CONTRAST,
    CROP,
    ERASE,
    GRAYSCALE,
    HFLIP,
    HUE,
    INVERT,
    NOP,
    POSTERIZE,
    SATURATION,
    SOLARIZE,
    VFLIP,
)
from kitae.augment.plan import Pipeline, Program
from kitae.keyed import SLOT_MIX

# Code -> kernel, and whether it may run in place. Loops on one buffer do not vectorise (source and target overlap), so only
# what touches a part of the image does.
KERNELS: dict[int, tuple[Any, bool]] = {
    NOP: (move.planar, False),
    CROP: (move.crop, False),
    HFLIP: (move.hflip, False),
    VFLIP: (move.vflip, False),
    ERASE: (move.erase, True),
    BRIGHTNESS: (color.brightness, False),
    CONTRAST: (color.contrast, False),
    SATURATION: (color.saturation, False),
    HUE: (color.hue, False),
    GRAYSCALE: (color.grayscale, False),
    INVERT: (color.invert, False),
    POSTERIZE: (color.posterize, False),
    SOLARIZE: (color.solarize, False),
}


class _Threads:
    """Threads that wait for work. Their own, since a numba threading layer aborts when two Python threads enter it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._count = 0

    def _serve(self) -> None:
        while True:
            task, argument, done = self._inbox.get()
            try:
                task(argument)
                done.put(None)
            except BaseException as error:  # handed to the caller
                done.put(error)

    def run(self, task: Any, argument: Any, threads: int) -> None:
        """Call task(argument) in `threads` threads, this one among them, and wait for all."""
        if threads <= 1:
            task(argument)
            return
        helpers = threads - 1
        with self._lock:
            while self._count < helpers:
                threading.Thread(target=self._serve, name="kitae-augment", daemon=True).start()
                self._count += 1
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(helpers):
            self._inbox.put((task, argument, done))
        problems = []
        try:
            task(argument)
        finally:
            problems = [p for p in (done.get() for _ in range(helpers)) if p is not None]
        if problems:
            raise problems[0]


_threads = _Threads()


def _after_fork() -> None:
    global _threads
    _threads = _Threads()  # threads do not survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def default_threads() -> int:
    """The CPUs this process may use; 1 inside a DataLoader worker."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.utils.data.get_worker_info() is not None:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Recycler:
    """Arrays that are handed out again when nobody else refers to them."""

    KEEP = 4  # of one size
    SMALL = 1 << 16  # bytes; below, the allocator is as good

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrays: dict[tuple[int, Any], list[NDArray[Any]]] = {}
        self._idle = self._references([np.empty(1)], 0)

    @staticmethod
    def _references(arrays: list[NDArray[Any]], at: int) -> int:
        return sys.getrefcount(arrays[at])

    def take(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array of this shape, contents undefined."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if size < self.SMALL:
            return np.empty(shape, dtype)
        with self._lock:
            shelf = self._arrays.setdefault((size, np.dtype(dtype)), [])
            for at in range(len(shelf)):
                if self._references(shelf, at) == self._idle:
                    return shelf[at].reshape(shape)
            base = np.empty(size // np.dtype(dtype).itemsize, dtype)
            if len(self._arrays) > 8:  # sizes come and go: start over
                self._arrays.clear()
                shelf = self._arrays.setdefault((size, np.dtype(dtype)), [])
            if len(shelf) < self.KEEP:
                shelf.append(base)
            return base.reshape(shape)


_local = threading.local()


def _scratch(size: int) -> NDArray[np.uint8]:
    """This thread's scratch memory, at least `size` bytes, 64-byte aligned."""
    kept: NDArray[np.uint8] | None = getattr(_local, "scratch", None)
    if kept is None or len(kept) < size:
        raw = np.zeros(size + 64, np.uint8)
        kept = raw[-raw.ctypes.data % 64 :][:size]
        _local.scratch = kept
    return kept


def _address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


class Executor:
    """Runs one pipeline's programs on NumPy arrays. Safe to call from several threads."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        seed: int,
        scale: list[float],
        shift: list[float],
        dtype: str,
        channels_last: bool,
        interleaved: bool,
        threads: int | None,
        codes: set[int] | None = None,
    ) -> None:
        self.pipeline, self.threads, self.dtype, self.channels_last = pipeline, threads, dtype, channels_last
        p = pipeline
        self._run = jit.native(driver.run, RUN).ctypes
        self._plans = np.array([jit.native(op.plan, PLAN).address for op in p.ops], np.int64)
        self._numbers = np.array([_address(n) for n in p.numbers], np.int64)
        self._offsets = np.array(p.offsets, np.int64)
        self._sizes = np.array(p.sizes, np.int64).reshape(-1)
        self._slots = np.array([*p.slots, SLOT_MIX], np.uint64)
        self._seed = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint64)
        self._scales = np.array([*(scale * 3)[:3], *(shift * 3)[:3]], np.float64)
        self._table = np.zeros(64, np.int64)
        self._flags = np.zeros(64, np.int64)
        for code in sorted({c for op in p.ops for c in op.codes} if codes is None else codes) + (
            [NOP] if interleaved else []
        ):
            if code in KERNELS:
                kernel, in_place = KERNELS[code]
                self._table[code] = jit.native(kernel, OP).address
                self._flags[code] = in_place
        finish: FunctionType = FINISHERS[dtype, channels_last]
        h, w = p.sizes[-1]
        largest = max(a * b for a, b in p.sizes) * p.channels
        self._image_bytes = (largest + 127) & ~63
        sides = max(max(s) for s in p.sizes)
        work = 64 * 1024 + 24 * self._image_bytes + 64 * sides
        self._scratch_bytes = driver.scratch_bytes(p.steps, self._image_bytes, work)
        c = np.zeros(driver.CONTEXT, np.int64)
        c[driver.STRIDE] = p.channels * p.height * p.width
        c[driver.CHANNELS], c[driver.HEIGHT], c[driver.WIDTH] = p.channels, p.height, p.width
        c[driver.LAST_HEIGHT], c[driver.LAST_WIDTH] = h, w
        c[driver.INTERLEAVED] = interleaved and p.channels > 1
        c[driver.STEPS], c[driver.OPS] = p.steps, len(p.ops)
        c[driver.PLANS], c[driver.NUMBERS] = _address(self._plans), _address(self._numbers)
        c[driver.OFFSETS], c[driver.SIZES] = _address(self._offsets), _address(self._sizes)
        c[driver.KEYS], c[driver.SEED] = _address(self._slots), _address(self._seed)
        c[driver.TABLE], c[driver.FLAGS] = _address(self._table), _address(self._flags)
        c[driver.FINISH_AT] = jit.native(finish, FINISH).address
        c[driver.SCALES], c[driver.IMAGE_BYTES] = _address(self._scales), self._image_bytes
        if p.mixing is not None:
            c[driver.MIXING] = _address(p.mixing)
        self._item = {"float32": 4, "bfloat16": 2, "uint8": 1}[dtype]
        c[driver.OUT_STRIDE] = self._item * p.channels * h * w
        self._context = c
        self._recycler = Recycler()

    def _go(self, context: NDArray[np.int64], threads: int) -> None:
        count = int(context[driver.COUNT])
        if count == 0:
            return
        counter = np.zeros(8, np.int64)
        context[driver.COUNTER] = _address(counter)
        p = self.pipeline
        # Blocks of some 64 KB of pixels, but enough blocks for the threads to share the work evenly.
        block = min(max(65536 // (p.channels * p.height * p.width), 1), max(count // (4 * threads), 1))
        context[driver.BLOCK] = (block + 1) & ~1
        threads = min(threads, -(-count // int(context[driver.BLOCK])))
        pointer = ctypes.cast(_address(context), ctypes.POINTER(ctypes.c_int64))

        def task(_: Any) -> None:
            self._run(pointer, _address(_scratch(self._scratch_bytes)))

        _threads.run(task, None, threads)

    def plan(self, epoch: NDArray[np.int64], index: NDArray[np.int64]) -> Program:
        """The program of each sample."""
        p = self.pipeline
        program = Program(
            np.zeros((len(index), p.steps), np.int64),
            np.zeros((len(index), p.steps, 12), np.float64),
            None if p.mixing is None else np.zeros((len(index), 6)),
        )
        context = self._context.copy()
        context[driver.COUNT] = len(index)
        context[driver.INDEX], context[driver.EPOCH] = _address(index), _address(epoch)
        context[driver.CODES_AT], context[driver.ARGS_AT] = _address(program.codes), _address(program.args)
        context[driver.MIX_AT] = 0 if program.mix is None else _address(program.mix)
        context[driver.WRITE_PROGRAM] = 1
        self._go(context, 1)
        return program

    def __call__(
        self,
        images: NDArray[np.uint8],
        epoch: NDArray[np.int64] | None,
        index: NDArray[np.int64] | None,
        targets: NDArray[Any] | None = None,
        classes: int = 0,
        program: Program | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Run on contiguous images, with keys or with a given program: the result and mixed targets.

        bfloat16 comes as uint16 bits; channels_last comes as [N, H, W, C].
        """
        p = self.pipeline
        count = len(images)
        h, w = p.sizes[-1]
        shape = (count, h, w, p.channels) if self.channels_last else (count, p.channels, h, w)
        out = self._recycler.take(shape, {"float32": np.float32, "bfloat16": np.uint16, "uint8": np.uint8}[self.dtype])
        context = self._context.copy()
        context[driver.COUNT] = count
        context[driver.IMAGES], context[driver.OUT] = _address(images), _address(out)
        mixed = None
        if targets is not None:
            mixed = np.empty((count, classes), np.float32)
            context[driver.TARGETS], context[driver.OUT_TARGETS] = _address(targets), _address(mixed)
            context[driver.TARGETS_KIND], context[driver.CLASSES] = 1 if targets.ndim == 1 else 2, classes
        if program is not None:
            context[driver.CODES_AT], context[driver.ARGS_AT] = _address(program.codes), _address(program.args)
            context[driver.MIXING] = 0 if program.mix is None else 1
            context[driver.MIX_AT] = 0 if program.mix is None else _address(program.mix)
        elif index is not None and epoch is not None:
            context[driver.INDEX], context[driver.EPOCH] = _address(index), _address(epoch)
        self._go(context, self.threads or default_threads())
        return out, mixed
