"""The last write: normalise, erase, mix, in the type and memory order that the caller wants.

`info` is what is known of one sample, or of a pair that mixes:
    0       boxes erased in the first image, then 4 numbers each (top, left, height, width), at most 7
    32      the same of the second
    64, 72  mixing of the first and of the second: kind (0 none, 1 MixUp, 2 CutMix), lambda, x1, y1, x2, y2
    80, 83  scale and shift of the three channels: float output = level * scale + shift
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kitae.augment.kernels.link import as_f32, as_u8, as_u16, bits32

SECOND, MIX_FIRST, MIX_SECOND, SCALE, SHIFT, INFO = 32, 64, 72, 80, 83, 96
BOXES = 7
HALF = np.float32(0.5)


def bfloat16(x: Any) -> Any:
    """The upper half of a float32, rounded to the nearest, ties to even."""
    bits = bits32(x)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


def level_row(src: Any, start: Any, info: Any, c: Any, row: Any, width: Any, plain: Any) -> Any:
    """One row of one channel as float32: normalised, or the plain level."""
    scale = np.float32(1.0) if plain else np.float32(info[SCALE + c])
    shift = np.float32(0.0) if plain else np.float32(info[SHIFT + c])
    for x in range(width):
        row[x] = np.float32(src[start + x]) * scale + shift
    return 0


def erase_row(info: Any, at: Any, y: Any, row: Any) -> Any:
    """Zeros where a box of this image covers the row."""
    for box in range(np.int64(info[at])):
        top = np.int64(info[at + 1 + 4 * box])
        if top <= y and y < top + np.int64(info[at + 3 + 4 * box]):
            left = np.int64(info[at + 2 + 4 * box])
            for x in range(left, left + np.int64(info[at + 4 + 4 * box])):
                row[x] = np.float32(0.0)
    return 0


def mix_row(own: Any, other: Any, info: Any, at: Any, y: Any, out: Any, width: Any) -> Any:
    """One row of the mixed image."""
    kind = info[at]
    if kind == 1.0:
        share = np.float32(info[at + 1])
        rest = np.float32(1.0 - info[at + 1])
        for x in range(width):
            out[x] = own[x] * share + other[x] * rest
    else:
        for x in range(width):
            out[x] = own[x]
        if kind == 2.0 and info[at + 3] <= y and y < info[at + 5]:
            for x in range(np.int64(info[at + 2]), np.int64(info[at + 4])):
                out[x] = other[x]
    return 0


def put_rows(form: Any, rows: Any, target: Any, y: Any, channels: Any, height: Any, width: Any) -> Any:
    """Rows of all channels to their place. form: 0 float32, 1 bfloat16, 2 uint8, plus 3 for [H, W, C]."""
    step = channels if form >= 3 else 1
    for c in range(channels):
        row = as_f32(rows + 4 * c * width)
        at = y * width * channels + c if form >= 3 else (c * height + y) * width
        if form % 3 == 0:
            out = as_f32(target + 4 * at)
            for x in range(width):
                out[x * step] = row[x]
        elif form % 3 == 1:
            half = as_u16(target + 2 * at)
            for x in range(width):
                half[x * step] = bfloat16(row[x])
        else:
            byte = as_u8(target + at)
            for x in range(width):
                byte[x * step] = np.uint8(np.int32(row[x] + HALF))
    return 0


def finish(form: Any, a: Any, b: Any, pair: Any, info: Any, first: Any, second: Any, work: Any, channels: Any,
           height: Any, width: Any) -> Any:  # fmt: skip
    plain = form % 3 == 2
    line = 4 * channels * width
    for y in range(height):
        for c in range(channels):
            start = (c * height + y) * width
            own = as_f32(work + 4 * c * width)
            level_row(a, start, info, c, own, width, plain)
            erase_row(info, 0, y, own)
            if pair:
                other = as_f32(work + line + 4 * c * width)
                level_row(b, start, info, c, other, width, plain)
                erase_row(info, SECOND, y, other)
                mix_row(own, other, info, MIX_FIRST, y, as_f32(work + 2 * line + 4 * c * width), width)
                mix_row(other, own, info, MIX_SECOND, y, as_f32(work + 3 * line + 4 * c * width), width)
        if pair:
            put_rows(form, work + 2 * line, first, y, channels, height, width)
            put_rows(form, work + 3 * line, second, y, channels, height, width)
        else:
            put_rows(form, work, first, y, channels, height, width)
    return 0


def finish_float32(
    a: Any, b: Any, info: Any, first: Any, second: Any, work: Any, channels: Any, height: Any, width: Any
) -> Any:
    return finish(0, a, b, second != 0, info, first, second, work, channels, height, width)


def finish_bfloat16(
    a: Any, b: Any, info: Any, first: Any, second: Any, work: Any, channels: Any, height: Any, width: Any
) -> Any:
    return finish(1, a, b, second != 0, info, first, second, work, channels, height, width)


def finish_uint8(
    a: Any, b: Any, info: Any, first: Any, second: Any, work: Any, channels: Any, height: Any, width: Any
) -> Any:
    return finish(2, a, b, second != 0, info, first, second, work, channels, height, width)


def finish_float32_last(
    a: Any, b: Any, info: Any, first: Any, second: Any, work: Any, channels: Any, height: Any, width: Any
) -> Any:
    return finish(3, a, b, second != 0, info, first, second, work, channels, height, width)


def finish_bfloat16_last(
    a: Any, b: Any, info: Any, first: Any, second: Any, work: Any, channels: Any, height: Any, width: Any
) -> Any:
    return finish(4, a, b, second != 0, info, first, second, work, channels, height, width)


def finish_uint8_last(
    a: Any, b: Any, info: Any, first: Any, second: Any, work: Any, channels: Any, height: Any, width: Any
) -> Any:
    return finish(5, a, b, second != 0, info, first, second, work, channels, height, width)


FINISHERS = {
    ("float32", False): finish_float32,
    ("bfloat16", False): finish_bfloat16,
    ("uint8", False): finish_uint8,
    ("float32", True): finish_float32_last,
    ("bfloat16", True): finish_bfloat16_last,
    ("uint8", True): finish_uint8_last,
}
