"""The last write: normalise, erase, mix, in the type and memory order that the caller wants.

Images are written in bands of rows that stay in the innermost cache. Where the whole result is larger than the caches
(`info[STREAM]`), planar float32 is written past them, which saves reading each line before overwriting it.

`info` is what is known of one sample, or of a pair that mixes:
    0       boxes erased in the first image, then 4 numbers each (top, left, height, width), at most 7
    32      the same of the second
    64, 72  mixing of the first and of the second: kind (0 none, 1 MixUp, 2 CutMix), lambda, x1, y1, x2, y2
    80, 83  scale and shift of the three channels: float output = level * scale + shift
    86      1: write past the caches
"""

# numba types these, not mypy.
# mypy: disable-error-code="arg-type,operator,assignment"

from __future__ import annotations

from typing import Any

import numpy as np

from kitae.augment.kernels.link import (
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
)

SECOND, MIX_FIRST, MIX_SECOND, SCALE, SHIFT, STREAM, INFO = 32, 64, 72, 80, 83, 86, 96
BOXES = 7
BAND = 1024  # values of a channel in a band
HALF = np.float32(0.5)
NOTHING = np.float32(0.0)


def bfloat16(x: Any) -> Any:
    """The upper half of a float32, rounded to the nearest, ties to even."""
    bits = bits32(x)
    odd = and_u32(shr_u32(bits, np.uint32(16)), np.uint32(1))
    return np.uint16(shr_u32(add_u32(add_u32(bits, np.uint32(0x7FFF)), odd), np.uint32(16)))


def level_band(src: Any, start: Any, count: Any, scale: Any, shift: Any, band: Any) -> Any:
    for i in range(count):
        band[i] = np.float32(src[start + i]) * scale + shift
    return 0


def erase_band(info: Any, at: Any, top: Any, rows: Any, width: Any, band: Any) -> Any:
    """Zeros where a box of this image covers the band."""
    for box in range(np.int64(info[at])):
        first = max(np.int64(info[at + 1 + 4 * box]) - top, 0)
        last = min(np.int64(info[at + 1 + 4 * box]) + np.int64(info[at + 3 + 4 * box]) - top, rows)
        left = np.int64(info[at + 2 + 4 * box])
        right = left + np.int64(info[at + 4 + 4 * box])
        for y in range(first, last):
            for x in range(y * width + left, y * width + right):
                band[x] = NOTHING
    return 0


def mix_band(own: Any, other: Any, info: Any, at: Any, top: Any, rows: Any, width: Any, out: Any) -> Any:
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
    return 0


def head(target: Any, count: Any) -> Any:
    """How many float32 come before the next 64-byte line."""
    return min((-(target >> 2)) & 15, count)


def stream_bytes(source: Any, target: Any, count: Any) -> Any:
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
    return 0


def put_band(
    form: Any, bands: Any, step: Any, target: Any, start: Any, count: Any, channels: Any, size: Any, stream: Any
) -> Any:
    """Bands of all channels to their place. form: 0 float32, 1 bfloat16, 2 uint8, plus 3 for [H, W, C]."""
    if form >= 3 and channels == 3:
        r = as_f32(bands)
        g = as_f32(bands + step)
        b = as_f32(bands + 2 * step)
        spare = bands + 3 * step
        if form == 3:
            out = as_f32(spare if stream else target + 12 * start)
            for i in range(count):
                out[3 * i] = r[i]
                out[3 * i + 1] = g[i]
                out[3 * i + 2] = b[i]
            if stream:
                stream_bytes(spare, target + 12 * start, 12 * count)
        elif form == 4:
            half = as_u16(spare if stream else target + 6 * start)
            for i in range(count):
                half[3 * i] = bfloat16(r[i])
                half[3 * i + 1] = bfloat16(g[i])
                half[3 * i + 2] = bfloat16(b[i])
            if stream:
                stream_bytes(spare, target + 6 * start, 6 * count)
        else:
            byte = as_u8(target + 3 * start)
            for i in range(count):
                byte[3 * i] = np.uint8(np.int32(r[i] + HALF))
                byte[3 * i + 1] = np.uint8(np.int32(g[i] + HALF))
                byte[3 * i + 2] = np.uint8(np.int32(b[i] + HALF))
        return 0
    for c in range(channels):
        band = as_f32(bands + c * step)
        at = c * size + start
        if form % 3 == 0:
            out = as_f32(target + 4 * at)
            if stream:
                stream_bytes(address_of(band), target + 4 * at, 4 * count)
            else:
                for i in range(count):
                    out[i] = band[i]
        elif form % 3 == 1:
            half = as_u16(target + 2 * at)
            for i in range(count):
                half[i] = bfloat16(band[i])
        else:
            byte = as_u8(target + at)
            for i in range(count):
                byte[i] = np.uint8(np.int32(band[i] + HALF))
    return 0


def plain_float32(src: Any, info: Any, target: Any, channels: Any, size: Any) -> Any:
    """One image without erasing or mixing, straight to planar float32."""
    source = address_of(src)
    for c in range(channels):
        scale = np.float32(info[SCALE + c])
        shift = np.float32(info[SHIFT + c])
        start = c * size
        out = as_f32(target + 4 * start)
        if info[STREAM] > 0.0:
            first = head(target + 4 * start, size)
            lines = (size - first) >> 4
            for i in range(first):
                out[i] = np.float32(src[start + i]) * scale + shift
            for line in range(lines):
                at = start + first + 16 * line
                stream_levels(source + at, target + 4 * at, scale, shift)
            for i in range(first + 16 * lines, size):
                out[i] = np.float32(src[start + i]) * scale + shift
        else:
            level_band(src, start, size, scale, shift, out)
    return 0


def finish(form: Any, a: Any, b: Any, pair: Any, info: Any, first: Any, second: Any, work: Any, channels: Any,
           height: Any, width: Any) -> Any:  # fmt: skip
    size = height * width
    if not pair and info[0] == 0.0:
        if form == 0:
            return plain_float32(a, info, first, channels, size)
        if form == 2:
            byte = as_u8(first)
            for i in range(channels * size):
                byte[i] = a[i]
            return 0
    plain = form % 3 == 2
    stream = info[STREAM] > 0.0
    rows = max(BAND // width, 1)
    step = 4 * ((rows * width + 31) & ~15)
    own = as_f32(work)
    other = as_f32(work + step)
    mixed = work + 2 * step
    mixed_other = mixed + 6 * step  # three bands, and room for the three interleaved
    for top in range(0, height, rows):
        height_here = min(rows, height - top)
        count = height_here * width
        for c in range(channels):
            scale = np.float32(1.0) if plain else np.float32(info[SCALE + c])
            shift = NOTHING if plain else np.float32(info[SHIFT + c])
            start = c * size + top * width
            if not pair:
                band = as_f32(mixed + c * step)
                level_band(a, start, count, scale, shift, band)
                erase_band(info, 0, top, height_here, width, band)
                continue
            level_band(a, start, count, scale, shift, own)
            erase_band(info, 0, top, height_here, width, own)
            level_band(b, start, count, scale, shift, other)
            erase_band(info, SECOND, top, height_here, width, other)
            mix_band(own, other, info, MIX_FIRST, top, height_here, width, as_f32(mixed + c * step))
            mix_band(other, own, info, MIX_SECOND, top, height_here, width, as_f32(mixed_other + c * step))
        put_band(form, mixed, step, first, top * width, count, channels, size, stream)
        if pair:
            put_band(form, mixed_other, step, second, top * width, count, channels, size, stream)
    return 0


def finish_float32(a: Any, b: Any, info: Any, first: Any, second: Any, work: Any, channels: Any, height: Any,
                   width: Any) -> Any:  # fmt: skip
    return finish(0, a, b, second != 0, info, first, second, work, channels, height, width)


def finish_bfloat16(a: Any, b: Any, info: Any, first: Any, second: Any, work: Any, channels: Any, height: Any,
                    width: Any) -> Any:  # fmt: skip
    return finish(1, a, b, second != 0, info, first, second, work, channels, height, width)


def finish_uint8(a: Any, b: Any, info: Any, first: Any, second: Any, work: Any, channels: Any, height: Any,
                 width: Any) -> Any:  # fmt: skip
    return finish(2, a, b, second != 0, info, first, second, work, channels, height, width)


def finish_float32_last(a: Any, b: Any, info: Any, first: Any, second: Any, work: Any, channels: Any, height: Any,
                        width: Any) -> Any:  # fmt: skip
    return finish(3, a, b, second != 0, info, first, second, work, channels, height, width)


def finish_bfloat16_last(a: Any, b: Any, info: Any, first: Any, second: Any, work: Any, channels: Any, height: Any,
                         width: Any) -> Any:  # fmt: skip
    return finish(4, a, b, second != 0, info, first, second, work, channels, height, width)


def finish_uint8_last(a: Any, b: Any, info: Any, first: Any, second: Any, work: Any, channels: Any, height: Any,
                      width: Any) -> Any:  # fmt: skip
    return finish(5, a, b, second != 0, info, first, second, work, channels, height, width)


FINISHERS = {
    ("float32", False): finish_float32,
    ("bfloat16", False): finish_bfloat16,
    ("uint8", False): finish_uint8,
    ("float32", True): finish_float32_last,
    ("bfloat16", True): finish_bfloat16_last,
    ("uint8", True): finish_uint8_last,
}
