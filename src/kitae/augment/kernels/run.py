"""The driver: a loop over samples, and in it over steps. One call per thread and batch; `context` has all it needs.

For each sample (each pair, if images mix) it plans every op of the pipeline, runs the steps on two buffers that stay
in the core's cache, and writes the result. Threads take blocks of samples from a shared atomic counter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kitae.augment.kernels.write import MIX_FIRST, MIX_SECOND, SCALE, SECOND, STREAM, finish
from kitae.augment.mix import MIX, plan_mix
from kitae.augment.ops.base import (
    ARGS,
    AUGMIX_BEGIN,
    AUGMIX_END,
    CHAIN_BEGIN,
    CHAIN_END,
    CROP,
    ERASE,
    ERASE_AFTER,
    GAUSSIAN_NOISE,
    HFLIP,
    MOST_BOXES,
    NOP,
    RESIZED_CROP,
)
from kitae.native.link import address_of, as_f64, as_i64, as_u8, as_u64, call6, call7, fence, fetch_add

# The context: int64, addresses and sizes.
COUNT = 0  # samples
BLOCK = 1  # samples taken at a time, even
IMAGES = 2  # uint8, one after the other
STRIDE = 3  # bytes from image to image
CHANNELS, HEIGHT, WIDTH = 4, 5, 6  # of the input
LAST_HEIGHT, LAST_WIDTH = 7, 8  # of the result
INTERLEAVED = 9  # 1: the input is [H, W, C]
STEPS = 10  # steps of a program
CODES_AT, ARGS_AT, MIX_AT = 11, 12, 13  # a given program; where the first is 0 it is planned, its mixing into the last
WRITE_PROGRAM = 14  # 1: plan into the given arrays and stop
OPS = 15  # ops of the pipeline
PLANS = 16  # int64 [OPS]: addresses of their plans
NUMBERS = 17  # int64 [OPS]: addresses of their numbers
OFFSETS = 18  # int64 [OPS]: first step
SIZES = 19  # int64 [OPS, 2]: height and width before
KEYS = 20  # uint64 [OPS + 1]: first slot of each op, then of mixing
SEED = 21  # uint64 [2]
INDEX, EPOCH = 22, 23  # int64 [N], int64 [N] or 0
SAME_EPOCH = 24  # of all samples, where EPOCH is 0
TABLE = 25  # int64 [CODES]: address of the op
FORM = 26  # of the results, see `write.FORMS`
OUT, OUT_STRIDE = 27, 28
MIXING = 29  # address of the numbers of mixing, or 0
MIX_SHARED, MIX_STEP = 30, 31  # 1: one mixing for the whole batch, keyed by this instead of the index
SCALES = 32  # float64 [6]: scale and shift per channel
QUANTILES = 33  # address of the table of normal quantiles
STREAMING = 34  # 1: write results past the caches
IMAGE_BYTES = 35  # of a buffer
COUNTER = 36  # address of the shared counter
NEXT = 56  # the counter itself, on a cache line of its own
CONTEXT = 64

# Layout of a thread's scratch memory, in bytes from its start.
KEY_AT = 0  # uint64 [6]
INFO_AT = 64  # float64 [96], see `write`
PROGRAM_AT = 1024  # codes, then args


def scratch_bytes(steps: int, image_bytes: int, work_bytes: int) -> int:
    """Bytes a thread needs: its program, four buffers, a kept original, a float accumulator, a work area."""
    return (buffers_at(steps) + 9 * image_bytes + work_bytes + 256 + 63) & ~63


def buffers_at(steps: int) -> int:
    """Where the buffers begin, after the program."""
    return (PROGRAM_AT + steps * 8 * (1 + ARGS) + 63) & ~63


def set_key(context: Any, key: Any, n: Any) -> None:
    index = as_u64(context[INDEX])[n]
    seed = as_u64(context[SEED])
    low = np.uint64(0xFFFFFFFF)
    key[0] = index & low
    key[1] = index >> np.uint64(32)
    key[2] = np.uint64(context[SAME_EPOCH]) if context[EPOCH] == 0 else as_u64(context[EPOCH])[n]
    key[4] = seed[0]
    key[5] = seed[1]


def plan_one(context: Any, key: Any, n: Any, codes: Any, args: Any) -> None:
    """All steps of sample n."""
    for step in range(context[STEPS]):
        codes[step] = NOP
    set_key(context, key, n)
    plans = as_i64(context[PLANS])
    numbers = as_i64(context[NUMBERS])
    offsets = as_i64(context[OFFSETS])
    sizes = as_i64(context[SIZES])
    slots = as_u64(context[KEYS])
    for op in range(context[OPS]):
        key[3] = slots[op]
        at = offsets[op]
        call6(plans[op], address_of(key), numbers[op], address_of(codes) + 8 * at, address_of(args) + 8 * ARGS * at,
              sizes[2 * op], sizes[2 * op + 1])  # fmt: skip


def plan_pair(context: Any, key: Any, n: Any, out: Any) -> None:
    """Mixing of sample n, or of its batch."""
    if context[MIX_SHARED] != 0:
        set_key(context, key, 0)
        step = np.uint64(context[MIX_STEP])
        key[0] = step & np.uint64(0xFFFFFFFF)
        key[1] = step >> np.uint64(32)
    else:
        set_key(context, key, n)
    key[3] = as_u64(context[KEYS])[context[OPS]]
    plan_mix(key, as_f64(context[MIXING]), out, context[LAST_HEIGHT], context[LAST_WIDTH])


def augment_one(context: Any, scratch: Any, n: Any, slot: Any, boxes: Any) -> Any:
    """Runs the program of sample n in buffers `slot` (0 or 1): the address of the uint8 [C, H, W] result."""
    steps = context[STEPS]
    if context[CODES_AT] != 0:
        codes = as_i64(context[CODES_AT] + 8 * n * steps)
        args = as_f64(context[ARGS_AT] + 8 * ARGS * n * steps)
    else:
        codes = as_i64(scratch + PROGRAM_AT)
        args = as_f64(scratch + PROGRAM_AT + 8 * steps)
        plan_one(context, as_u64(scratch + KEY_AT), n, codes, args)
    size = context[IMAGE_BYTES]
    buffers = scratch + buffers_at(steps)
    a = buffers + 2 * slot * size
    b = a + size
    kept = buffers + 4 * size
    sums = kept + size
    work = sums + 4 * size
    table = as_i64(context[TABLE])
    channels = context[CHANNELS]
    height = context[HEIGHT]
    width = context[WIDTH]
    given = context[IMAGES] + n * context[STRIDE]
    current = given
    base = given  # what must not be written: the input, or AugMix's original
    if context[INTERLEAVED] != 0:
        call7(table[NOP], current, a, work, 0, channels, height, width)
        current = a
    found = 0
    done = np.int64(-1)  # the last step that ran together with one before it
    for step in range(steps):
        code = codes[step]
        if code == NOP or step <= done:
            continue
        at = address_of(args) + 8 * ARGS * step
        arg = as_f64(at)
        if code == ERASE_AFTER:
            if found < MOST_BOXES:
                for i in range(4):
                    boxes[1 + 4 * found + i] = arg[i]
                found += 1
        elif code == CHAIN_BEGIN:
            current = base
        elif code == CHAIN_END:
            call7(table[code], current, sums, work, at, channels, height, width)
        elif code == AUGMIX_BEGIN:
            base = current if current == given else kept
            call7(table[code], current, sums, 0 if base == given else kept, at, channels, height, width)
        elif code == AUGMIX_END:
            call7(table[code], sums, a, work, at, channels, height, width)
            current = a
        else:
            target = b if current == a else a
            if code == ERASE and current != base:  # which may run in place
                target = current
            extra = work
            if code == GAUSSIAN_NOISE:
                as_i64(work)[0] = context[QUANTILES]
            elif code == CROP:
                # A crop mirrors its rows itself where a flip follows.
                after = step + 1
                while after < steps and codes[after] == NOP:
                    after += 1
                extra = np.int64(0)
                if after < steps and codes[after] == HFLIP:
                    extra = np.int64(1)
                    done = after
            call7(table[code], current, target, extra, at, channels, height, width)
            current = target
            if code == CROP:
                height = np.int64(arg[2])
                width = np.int64(arg[3])
            elif code == RESIZED_CROP:
                height = np.int64(arg[4])
                width = np.int64(arg[5])
    boxes[0] = found
    return current


def run(context_at: Any, a: Any, b: Any, c: Any, first: Any, last: Any, scratch: Any) -> Any:
    """Take samples and work on them until there are none. `native.threads` calls it, the same for every thread."""
    context = as_i64(context_at)
    count = context[COUNT]
    block = context[BLOCK]
    channels = context[CHANNELS]
    last_height = context[LAST_HEIGHT]
    last_width = context[LAST_WIDTH]
    out = context[OUT]
    stride = context[OUT_STRIDE]
    steps = context[STEPS]
    key = as_u64(scratch + KEY_AT)
    info = as_f64(scratch + INFO_AT)
    work = scratch + buffers_at(steps) + 9 * context[IMAGE_BYTES]
    scales = as_f64(context[SCALES])
    for i in range(6):
        info[SCALE + i] = scales[i]
    info[STREAM] = context[STREAMING]
    while True:
        start = fetch_add(context[COUNTER], block)
        if start >= count:
            fence()
            return 0
        n = start
        stop = min(start + block, count)
        while n < stop:
            if context[WRITE_PROGRAM] != 0:
                plan_one(context, key, n, as_i64(context[CODES_AT] + 8 * n * steps),
                         as_f64(context[ARGS_AT] + 8 * ARGS * n * steps))  # fmt: skip
                if context[MIXING] != 0:
                    plan_pair(context, key, n, as_f64(context[MIX_AT] + 8 * MIX * n))
                n += 1
                continue
            pair = context[MIXING] != 0 and n + 1 < count
            first = augment_one(context, scratch, n, 0, info)
            second = np.int64(0)
            if pair:
                second = augment_one(context, scratch, n + 1, 1, as_f64(scratch + INFO_AT + 8 * SECOND))
                mix = context[MIX_AT] + 8 * MIX * n
                if context[CODES_AT] == 0:
                    plan_pair(context, key, n, as_f64(mix))
                    plan_pair(context, key, n + 1, as_f64(mix + 8 * MIX))
                given = as_f64(mix)
                for i in range(MIX):
                    info[MIX_FIRST + i] = given[i]
                    info[MIX_SECOND + i] = given[MIX + i]
            at = out + n * stride
            finish(context[FORM], as_u8(first), as_u8(second), pair, info, at, at + stride, work, channels, last_height,
                   last_width)  # fmt: skip
            n += 2 if pair else 1
