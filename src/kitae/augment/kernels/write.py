"""The last write: normalise, erase, mix, in the type and memory order that the caller wants.

Images are written in bands of rows that stay in the innermost cache. If the whole result is larger than the caches
(`info[STREAM]`), planar float32 bypasses them, which saves reading each line before overwriting it.

`info` describes one sample, or a pair that mixes:
    0       boxes erased in the first image, then 4 numbers each (top, left, height, width), at most 7
    32      the same of the second
    64, 72  mixing of the first and of the second: kind (0 none, 1 MixUp, 2 CutMix), lambda, x1, y1, x2, y2
    80, 83  scale and shift of the three channels: float output = level * scale + shift
    86      1: write past the caches
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kitae.augment.kernels.move import copy_bytes
from kitae.native.link import (
    add_u32,
    address_of,
    and_u32,
    as_f32,
    as_u8,
    as_u16,
    bits32,
    shr_u32,
    stream_levels,
    stream_line,
    stream_mixed,
)

SECOND, MIX_FIRST, MIX_SECOND, SCALE, SHIFT, STREAM = 32, 64, 72, 80, 83, 86
BAND = 1024  # values per channel in a band
FORMS = ("float32", "bfloat16", "uint8")  # of results, by number; 3 more where they are [H, W, C]
HALF = np.float32(0.5)
NOTHING = np.float32(0.0)


def bfloat16(x: Any) -> Any:
    """The upper half of a float32, rounded to the nearest, ties to even."""
    bits = bits32(x)
    odd = and_u32(shr_u32(bits, np.uint32(16)), np.uint32(1))
    return np.uint16(shr_u32(add_u32(add_u32(bits, np.uint32(0x7FFF)), odd), np.uint32(16)))


def level_band(src: Any, start: Any, count: Any, scale: Any, shift: Any, band: Any) -> None:
    for i in range(count):
        band[i] = np.float32(src[start + i]) * scale + shift


def erase_band(info: Any, at: Any, top: Any, rows: Any, width: Any, band: Any) -> None:
    """Zeros where a box of this image covers the band."""
    for box in range(np.int64(info[at])):
        first = max(np.int64(info[at + 1 + 4 * box]) - top, 0)
        last = min(np.int64(info[at + 1 + 4 * box]) + np.int64(info[at + 3 + 4 * box]) - top, rows)
        left = np.int64(info[at + 2 + 4 * box])
        right = left + np.int64(info[at + 4 + 4 * box])
        for y in range(first, last):
            for x in range(y * width + left, y * width + right):
                band[x] = NOTHING


def mix_band(own: Any, other: Any, info: Any, at: Any, top: Any, rows: Any, width: Any, out: Any) -> None:
    """A band of the mixed image."""
    kind = info[at]
    count = rows * width
    if kind == 1.0:
        share = np.float32(info[at + 1])
        rest = np.float32(1.0 - info[at + 1])
        for i in range(count):
            out[i] = own[i] * share + other[i] * rest
    else:
        for i in range(count):
            out[i] = own[i]
        if kind == 2.0:
            left = np.int64(info[at + 2])
            right = np.int64(info[at + 4])
            for y in range(max(np.int64(info[at + 3]) - top, 0), min(np.int64(info[at + 5]) - top, rows)):
                for x in range(y * width + left, y * width + right):
                    out[x] = other[x]


def head(target: Any, count: Any) -> Any:
    """How many float32 come before the next 64-byte line."""
    return min((-(target >> 2)) & 15, count)


def stream_bytes(source: Any, target: Any, count: Any) -> None:
    """Copy bytes past the caches."""
    first = min((-target) & 63, count)
    s = as_u8(source)
    t = as_u8(target)
    for i in range(first):
        t[i] = s[i]
    lines = (count - first) >> 6
    for line in range(lines):
        stream_line(source + first + 64 * line, target + first + 64 * line)
    for i in range(first + 64 * lines, count):
        t[i] = s[i]


def put_run(kind: Any, source: Any, target: Any, count: Any, stream: Any) -> None:
    """A run of float32 to its place. kind: its number in `FORMS`."""
    values = as_f32(source)
    if kind == 0 and stream:
        stream_bytes(source, target, 4 * count)
    elif kind == 0:
        out = as_f32(target)
        for i in range(count):
            out[i] = values[i]
    elif kind == 1:
        half = as_u16(target)
        for i in range(count):
            half[i] = bfloat16(values[i])
    else:
        byte = as_u8(target)
        for i in range(count):
            byte[i] = np.uint8(np.int32(values[i] + HALF))


def put_band(
    form: Any, bands: Any, step: Any, target: Any, start: Any, count: Any, channels: Any, size: Any, stream: Any
) -> None:
    """Bands of all channels to their place."""
    item = 4 >> (form % 3)
    if form < 3 or channels == 1:
        for c in range(channels):
            put_run(form % 3, bands + c * step, target + item * (c * size + start), count, stream)
        return
    r = as_f32(bands)
    g = as_f32(bands + step)
    b = as_f32(bands + 2 * step)
    spare = bands + 3 * step
    at_once = form == 3 and not stream
    together = as_f32(target + 12 * start if at_once else spare)
    for i in range(count):
        together[3 * i] = r[i]
        together[3 * i + 1] = g[i]
        together[3 * i + 2] = b[i]
    if not at_once:
        put_run(form % 3, spare, target + 3 * item * start, 3 * count, stream)


def straight(src: Any, other: Any, info: Any, mix: Any, target: Any, first: Any, count: Any, channels: Any,
             size: Any) -> None:  # fmt: skip
    """Values first .. of each channel to planar float32 in one run, where nothing is erased and no box begins.

    mix: the index of this image's mixing in `info`, or 0.
    """
    source = address_of(src)
    theirs = address_of(other)
    mixing = mix != 0 and info[mix] == 1.0
    share = np.float32(info[mix + 1]) if mixing else np.float32(1.0)
    rest = np.float32(1.0 - info[mix + 1]) if mixing else NOTHING
    for c in range(channels):
        scale = np.float32(info[SCALE + c])
        shift = np.float32(info[SHIFT + c])
        start = c * size + first
        stop = start + count
        out = as_f32(target)
        begin = start
        end = start
        if info[STREAM] > 0.0:
            begin = start + head(target + 4 * start, count)
            end = begin + ((stop - begin) & ~15)
        if mixing:
            for i in range(start, begin):
                out[i] = (np.float32(src[i]) * scale + shift) * share + (np.float32(other[i]) * scale + shift) * rest
            for i in range(begin, end, 16):
                stream_mixed(source + i, theirs + i, target + 4 * i, scale, shift, share, rest)
            for i in range(end, stop):
                out[i] = (np.float32(src[i]) * scale + shift) * share + (np.float32(other[i]) * scale + shift) * rest
        else:
            for i in range(start, begin):
                out[i] = np.float32(src[i]) * scale + shift
            for i in range(begin, end, 16):
                stream_levels(source + i, target + 4 * i, scale, shift)
            for i in range(end, stop):
                out[i] = np.float32(src[i]) * scale + shift


def woven(half: Any, src: Any, other: Any, info: Any, mix: Any, target: Any, spare: Any, first: Any, count: Any,
          size: Any) -> None:  # fmt: skip
    """The same of three channels, to [H, W, 3]; `half`: bfloat16. `spare`: room for a band."""
    mixing = mix != 0 and info[mix] == 1.0
    share = np.float32(info[mix + 1]) if mixing else np.float32(1.0)
    rest = np.float32(1.0 - info[mix + 1]) if mixing else NOTHING
    scale0 = np.float32(info[SCALE])
    scale1 = np.float32(info[SCALE + 1])
    scale2 = np.float32(info[SCALE + 2])
    shift0 = np.float32(info[SHIFT])
    shift1 = np.float32(info[SHIFT + 1])
    shift2 = np.float32(info[SHIFT + 2])
    item = 6 if half else 12
    stream = info[STREAM] > 0.0
    for start in range(first, first + count, BAND):
        here = min(BAND, first + count - start)
        place = spare if stream else target + item * start
        words = as_u16(place)
        floats = as_f32(place)
        for i in range(here):
            j = start + i
            r = np.float32(src[j]) * scale0 + shift0
            g = np.float32(src[j + size]) * scale1 + shift1
            b = np.float32(src[j + 2 * size]) * scale2 + shift2
            if mixing:
                r = r * share + (np.float32(other[j]) * scale0 + shift0) * rest
                g = g * share + (np.float32(other[j + size]) * scale1 + shift1) * rest
                b = b * share + (np.float32(other[j + 2 * size]) * scale2 + shift2) * rest
            if half:
                words[3 * i] = bfloat16(r)
                words[3 * i + 1] = bfloat16(g)
                words[3 * i + 2] = bfloat16(b)
            else:
                floats[3 * i] = r
                floats[3 * i + 1] = g
                floats[3 * i + 2] = b
        if stream:
            stream_bytes(place, target + item * start, item * here)


def covered(info: Any, at: Any, begin: Any, end: Any) -> Any:
    """Rows begin to end, stretched over the boxes of an image."""
    for box in range(np.int64(info[at])):
        top = np.int64(info[at + 1 + 4 * box])
        begin = min(begin, top)
        end = max(end, top + np.int64(info[at + 3 + 4 * box]))
    return begin, end


def finish(form: Any, a: Any, b: Any, pair: Any, info: Any, first: Any, second: Any, work: Any, channels: Any,
           height: Any, width: Any) -> Any:  # fmt: skip
    """Write one image, or two that mix.

    Args:
        form: see `FORMS`.
        a, b: uint8 [C, H, W]; b only where there is a pair.
        first, second: addresses of their results.
    """
    size = height * width
    if form == 2 and not pair and info[0] == 0.0:
        return copy_bytes(address_of(a), first, channels * size)
    # Rows from `begin` to `end` have boxes in them; the rest is written straight, in the forms that training uses.
    begin = np.int64(0)
    end = height
    if form == 0 or (3 <= form <= 4 and channels == 3):
        begin, end = covered(info, 0, height, begin)
        if pair:
            begin, end = covered(info, SECOND, begin, end)
            for at in (MIX_FIRST, MIX_SECOND):
                if info[at] == 2.0:
                    begin = min(begin, np.int64(info[at + 3]))
                    end = max(end, np.int64(info[at + 5]))
        begin = min(begin, end)
        for part in range(2):
            start = end * width if part == 1 else 0
            count = size - start if part == 1 else begin * width
            if form == 0:
                straight(a, b, info, MIX_FIRST if pair else 0, first, start, count, channels, size)
                if pair:
                    straight(b, a, info, MIX_SECOND, second, start, count, channels, size)
            else:
                woven(form == 4, a, b, info, MIX_FIRST if pair else 0, first, work, start, count, size)
                if pair:
                    woven(form == 4, b, a, info, MIX_SECOND, second, work, start, count, size)
    stream = info[STREAM] > 0.0
    rows = max(BAND // width, 1)
    step = 4 * ((rows * width + 31) & ~15)
    other = as_f32(work + step)
    mixed = work + 2 * step
    mixed_other = mixed + 6 * step  # three bands, and room for the three interleaved
    for top in range(begin, end, rows):
        height_here = min(rows, end - top)
        count = height_here * width
        for c in range(channels):
            scale = np.float32(info[SCALE + c])
            shift = np.float32(info[SHIFT + c])
            start = c * size + top * width
            own = as_f32(work if pair else mixed + c * step)
            level_band(a, start, count, scale, shift, own)
            erase_band(info, 0, top, height_here, width, own)
            if not pair:
                continue
            level_band(b, start, count, scale, shift, other)
            erase_band(info, SECOND, top, height_here, width, other)
            mix_band(own, other, info, MIX_FIRST, top, height_here, width, as_f32(mixed + c * step))
            mix_band(other, own, info, MIX_SECOND, top, height_here, width, as_f32(mixed_other + c * step))
        put_band(form, mixed, step, first, top * width, count, channels, size, stream)
        if pair:
            put_band(form, mixed_other, step, second, top * width, count, channels, size, stream)
    return 0
