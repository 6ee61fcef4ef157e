"""The CPU executor: compiled kernels, run by PyTorch's own threads without the interpreter lock.

A call fills one array of addresses and sizes, the context, and each thread runs `kernels.run.run` on it. There are no
worker processes. The memory of a result is reused once nothing refers to it, since touching fresh pages would take
longer than augmenting.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kitae.augment.kernels import resize
from kitae.augment.kernels import run as driver
from kitae.augment.kernels.write import FORMS
from kitae.augment.mix import MIX
from kitae.augment.ops import STEPS
from kitae.augment.ops.base import ARGS, CODES, GAUSSIAN_NOISE, NOP, RESIZED_CROP
from kitae.augment.ops.noise import noise_quantiles
from kitae.augment.plan import Keys, Pipeline, Program
from kitae.keyed import SLOT_MIX
from kitae.machine import after_fork, processors
from kitae.native import jit
from kitae.native.link import OP, PLAN
from kitae.native.threads import prepare, share_parts


def _address(array: NDArray[Any]) -> int:
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


_SIZES, _KEPT = 8, 4  # sizes of arrays that are kept to be reused, and arrays of each
_SMALL = 1 << 16  # bytes; below, the allocator is as good

_arrays: dict[tuple[int, Any], list[NDArray[Any]]] = {}
_lock = threading.Lock()


def _references(arrays: list[NDArray[Any]], at: int) -> int:
    return sys.getrefcount(arrays[at])


_IDLE = _references([np.empty(1)], 0)  # of an array that nobody else refers to


def take(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array of this shape, contents undefined; large arrays reuse the memory of earlier results."""
    dtype, count = np.dtype(dtype), math.prod(shape)
    if count * dtype.itemsize < _SMALL:
        return np.empty(shape, dtype)
    with _lock:
        if (count, dtype) not in _arrays and len(_arrays) >= _SIZES:  # sizes come and go: start over
            _arrays.clear()
        kept = _arrays.setdefault((count, dtype), [])
        for at in range(len(kept)):
            if _references(kept, at) == _IDLE:
                return kept[at].reshape(shape)
        base = np.empty(count, dtype)
        if len(kept) < _KEPT:
            kept.append(base)
        return base.reshape(shape)


def _after_fork() -> None:
    """Threads of the parent never release the lock, nor arrays, in the child."""
    global _lock
    _lock = threading.Lock()
    _arrays.clear()


after_fork(_after_fork)

# Larger results do not stay in the caches anyway, so they are written with non-temporal stores.
STREAM_BYTES = 12 << 20

_local = threading.local()


def _scratch(size: int) -> NDArray[np.uint8]:
    """This thread's scratch memory, at least `size` bytes, 64-byte aligned."""
    kept: NDArray[np.uint8] | None = getattr(_local, "scratch", None)
    if kept is None or len(kept) < size:
        raw = np.zeros(size + 64, np.uint8)
        kept = raw[-_address(raw) % 64 :][:size]
        _local.scratch = kept
    return kept


def _work_bytes(pipeline: Pipeline, codes: set[int]) -> int:
    """Bytes of the work area: the most that any kernel needs at the largest size."""
    side = max(max(size) for size in pipeline.sizes) + 64
    padded = max((h + 64) * (w + 64) for h, w in pipeline.sizes)  # one word per pixel
    need = 64 * side + 128 * 1024 + 5 * padded
    if RESIZED_CROP in codes:
        need = max(need, *(resize.work_bytes(*old, *new) for old, new in itertools.pairwise(pipeline.sizes)))
    return need


class Pace:
    """Whether to share a batch among threads: if that took less time for a sample than one thread, lately.

    The threads of a batch wait for the last of them, so beside other programs that use the processors, sharing can
    take many times as long. The slower way is tried again after 20 times what it took. Only the time of batches
    counts, not what a caller does between them. Results do not depend on it.
    """

    def __init__(self) -> None:
        self._cost = [0.0, 0.0]  # of a sample with one thread, and shared
        self._spent = 0.0  # seconds, on all batches so far
        self._again = [0.0, 0.0]  # when to try it again, in those seconds

    def share(self) -> bool:
        """Whether to share the next batch. The first is not shared, the second is."""
        better = self._cost[1] <= self._cost[0]
        return better if self._spent < self._again[not better] else not better

    def took(self, shared: bool, seconds: float, count: int) -> None:
        """Note the time of a batch of `count` samples."""
        self._cost[shared] = seconds / count
        self._spent += seconds
        self._again[shared] = self._spent + 20 * seconds


class Executor:
    """Runs one pipeline's programs on NumPy arrays. Safe to call from several threads.

    Plans are compiled at once, kernels when they are first needed.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        seed: int,
        *,
        dtype: str = "uint8",
        channels_last: bool = False,
        interleaved: bool = False,
        threads: int | None = None,
    ) -> None:
        self.pipeline, self.threads, self.channels_last = pipeline, threads, channels_last
        self._stored = np.dtype("uint16" if dtype == "bfloat16" else dtype)  # NumPy has no bfloat16
        p = pipeline
        self._codes = {step.code for op in p.ops for step in op.writes} | ({NOP} if interleaved else set())
        self._table = np.zeros(CODES, np.int64)
        self._prepared = False
        (height, width), (last_height, last_width) = p.sizes[0], p.sizes[-1]
        image_bytes = (max(h * w for h, w in p.sizes) * p.channels + 127) & ~63
        self._scratch_bytes = driver.scratch_bytes(p.steps, image_bytes, _work_bytes(p, self._codes))
        self._kept: list[NDArray[Any]] = [self._table, *p.numbers]  # as their memory is read by address

        def address(values: Any, kind: Any) -> int:
            self._kept.append(np.array(values, kind))
            return _address(self._kept[-1])

        prepare(driver.run)
        self._pace = Pace()
        c = np.zeros(driver.CONTEXT, np.int64)
        c[driver.STRIDE] = p.channels * height * width
        c[driver.CHANNELS], c[driver.HEIGHT], c[driver.WIDTH] = p.channels, height, width
        c[driver.LAST_HEIGHT], c[driver.LAST_WIDTH] = last_height, last_width
        c[driver.INTERLEAVED] = interleaved and p.channels > 1
        c[driver.STEPS], c[driver.OPS] = p.steps, len(p.ops)
        c[driver.PLANS] = address([jit.native(op.plan, PLAN).address for op in p.ops], np.int64)
        c[driver.NUMBERS] = address([_address(n) for n in p.numbers], np.int64)
        c[driver.OFFSETS], c[driver.SIZES] = address(p.offsets, np.int64), address(p.sizes, np.int64)
        c[driver.KEYS] = address([*p.slots, SLOT_MIX], np.uint64)
        c[driver.SEED] = address([seed & 0xFFFFFFFF, seed >> 32], np.uint64)
        c[driver.TABLE], c[driver.SCALES] = _address(self._table), address([*p.scale, *p.shift], np.float64)
        c[driver.IMAGE_BYTES] = image_bytes
        c[driver.FORM] = FORMS.index(dtype) + 3 * channels_last
        c[driver.OUT_STRIDE] = self._stored.itemsize * p.channels * last_height * last_width
        if p.mixing is not None:
            c[driver.MIXING], c[driver.MIX_SHARED] = address(p.mixing, np.float64), p.mixes_batch
        if GAUSSIAN_NOISE in self._codes:
            c[driver.QUANTILES] = _address(noise_quantiles())
        self._context = c

    def prepare(self) -> None:
        """Compile, or load, the kernels."""
        if not self._prepared:
            for step in (STEPS[code] for code in sorted(self._codes)):
                if step.kernel is not None:
                    self._table[step.code] = jit.native(step.kernel, OP).address
            self._prepared = True

    def _go(self, context: NDArray[np.int64], count: int, threads: int) -> None:
        if count == 0:
            return
        at = _address(context)
        context[driver.COUNT], context[driver.COUNTER] = count, at + 8 * driver.NEXT
        # Blocks of some 16 KB of pixels, but enough blocks for the threads to share the work evenly.
        block = min(max(16384 // int(context[driver.STRIDE]), 1), max(count // (8 * threads), 1))
        block = (block + 1) & ~1
        context[driver.BLOCK] = block
        parts = min(threads, -(-count // block))
        began = time.perf_counter()
        shared = parts > 1 and self._pace.share()
        parts = parts if shared else 1
        area = _address(_scratch(parts * self._scratch_bytes)), self._scratch_bytes
        # All threads, though some may find nothing to do: OpenMP ends those that a smaller team leaves out.
        share_parts(driver.run, (at, 0, 0, 0), parts, parts, area, threads if shared else 1)
        self._pace.took(shared, time.perf_counter() - began, count)

    @staticmethod
    def _set_keys(context: NDArray[np.int64], keys: Keys) -> None:
        context[driver.INDEX], context[driver.MIX_STEP] = _address(keys.index), keys.step
        if isinstance(keys.epoch, int):
            context[driver.SAME_EPOCH] = keys.epoch
        else:
            context[driver.EPOCH] = _address(keys.epoch)

    @staticmethod
    def _set_program(context: NDArray[np.int64], program: Program) -> None:
        context[driver.CODES_AT], context[driver.ARGS_AT] = _address(program.codes), _address(program.args)
        context[driver.MIX_AT] = 0 if program.mix is None else _address(program.mix)

    def plan(self, keys: Keys) -> Program:
        """The program of each sample."""
        p, count = self.pipeline, len(keys.index)
        program = Program(
            np.zeros((count, p.steps), np.int64),
            np.zeros((count, p.steps, ARGS), np.float64),
            None if p.mixing is None else np.zeros((count, MIX)),
        )
        context = self._context.copy()
        self._set_keys(context, keys)
        self._set_program(context, program)
        context[driver.WRITE_PROGRAM] = 1
        self._go(context, count, 1)
        return program

    def __call__(
        self, images: NDArray[np.uint8], source: Keys | Program
    ) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
        """Run a program, or the one that the keys draw, on contiguous images: the result and its mixing.

        bfloat16 comes as uint16 bits; channels_last comes as [N, H, W, C].
        """
        self.prepare()
        p = self.pipeline
        count = len(images)
        h, w = p.sizes[-1]
        out = take((count, h, w, p.channels) if self.channels_last else (count, p.channels, h, w), self._stored)
        context = self._context.copy()
        context[driver.STREAMING] = out.nbytes > STREAM_BYTES
        context[driver.IMAGES], context[driver.OUT] = _address(images), _address(out)
        if isinstance(source, Program):
            self._set_program(context, source)
            mix = source.mix
        else:
            self._set_keys(context, source)
            mix = None if p.mixing is None else np.zeros((count, MIX))
            context[driver.MIX_AT] = 0 if mix is None else _address(mix)
        torch = sys.modules.get("torch")  # whose number of threads is 1 in a DataLoader worker
        self._go(context, count, self.threads or (processors() if torch is None else torch.get_num_threads()))
        return out, mix
