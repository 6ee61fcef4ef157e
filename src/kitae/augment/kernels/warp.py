"""Affine and perspective.

A warp finds, for some rows of the result, where each pixel comes from (vectorised arithmetic), then fetches.
Coordinates are float32, multiplied and added in the order written here, which the torch executor repeats.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kitae.augment.kernels.color import ONE, ZERO
from kitae.augment.kernels.move import copy_bytes, fill_bytes
from kitae.native.link import (
    add_i32,
    address_of,
    and_u32,
    as_f32,
    as_i32,
    as_u8,
    as_u16,
    as_u32,
    as_u64,
    mul_i32,
    or_u32,
    shl_u32,
    shr_u32,
)

MAGIC = np.float32(12582912.0)  # 1.5 * 2**23: adding and subtracting it rounds to the nearest integer, ties to even
HALF = np.float32(0.5)
FAR = np.float32(32768.0)


def rint32(x: Any) -> Any:
    """To the nearest integer, ties to even, for |x| < 2**22."""
    return (x + MAGIC) - MAGIC


def bounded(x: Any, low: Any, high: Any) -> Any:
    x = x if x > low else low
    return x if x < high else high


def fill_level(args: Any, at: Any) -> Any:
    """A fill as a level: NaN (none) is black."""
    value = args[at]
    return np.float32(0.0) if value != value else np.float32(value)


def fill_byte(args: Any, at: Any) -> Any:
    """The same as a whole level, rounded."""
    return np.uint8(np.int32(rint32(fill_level(args, at))))


def shift_rows(src: Any, dst: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """Translations and shears along x, whose rows are moved whole. 0 where a shift is too near a tie: nothing is
    done."""
    centre_y = 0.5 * (height - 1)
    down = args[5]
    if abs(down - np.floor(down) - 0.5) < 2e-3:
        return 0
    for y in range(height):
        shift = args[1] * (y - centre_y) + args[2]
        if abs(shift - np.floor(shift) - 0.5) < 2e-3:
            return 0
    source = address_of(src)
    target = address_of(dst)
    dy = np.int64(np.rint(down))
    for y in range(height):
        row = y + dy
        dx = np.int64(np.rint(args[1] * (y - centre_y) + args[2]))
        begin = min(max(-dx, 0), width)
        end = max(min(width - dx, width), begin)
        if row < 0 or row >= height:
            begin = width
            end = width
        for c in range(channels):
            fill = fill_byte(args, 6 + c)
            at = (c * height + y) * width
            start = (c * height + row) * width + dx
            fill_bytes(target + at, fill, begin)
            copy_bytes(source + start + begin, target + at + begin, end - begin)
            fill_bytes(target + at + end, fill, width - end)
    return 1


WARP_BAND = 1024  # pixels whose coordinates are worked out together


def affine_points(args: Any, top: Any, rows: Any, xs: Any, ys: Any, height: Any, width: Any) -> None:
    """Where the pixels of some rows come from."""
    a = np.float32(args[0])
    d = np.float32(args[3])
    centre_x = np.float32(0.5 * (width - 1))
    centre_y = np.float32(0.5 * (height - 1))
    for row in range(rows):
        yc = np.float32(top + row) - centre_y
        base_x = np.float32(args[1]) * yc + np.float32(args[2])
        base_y = np.float32(args[4]) * yc + np.float32(args[5])
        at = row * width
        for x in range(width):
            xc = np.float32(np.int32(x)) - centre_x
            xs[at + x] = (a * xc + base_x) + centre_x
            ys[at + x] = (d * xc + base_y) + centre_y


def perspective_points(args: Any, top: Any, rows: Any, xs: Any, ys: Any, height: Any, width: Any) -> None:
    a = np.float32(args[0])
    d = np.float32(args[3])
    g = np.float32(args[6])
    for row in range(rows):
        yc = np.float32(top + row) + HALF
        base_x = np.float32(args[1]) * yc + np.float32(args[2])
        base_y = np.float32(args[4]) * yc + np.float32(args[5])
        base_w = np.float32(args[7]) * yc + ONE
        at = row * width
        for x in range(width):
            xc = np.float32(np.int32(x)) + HALF
            w = g * xc + base_w
            # Bounded, so that a point at infinity is merely outside (and NaN is the left border).
            xs[at + x] = bounded((a * xc + base_x) / w - HALF, -FAR, FAR)
            ys[at + x] = bounded((d * xc + base_y) / w - HALF, -FAR, FAR)


def pad_image(
    src: Any, padded: Any, channels: Any, height: Any, width: Any, args: Any, fill_at: Any, black: Any
) -> None:
    """The image with a border: one pixel left and above, two right and below, of the fill colour or black.

    Three channels are packed into one 32-bit word per pixel, so that one load fetches all of them.
    """
    stride = width + 3
    if channels == 1:
        border = np.uint8(0) if black else fill_byte(args, fill_at)
        bytes_ = as_u8(padded)
        for i in range(stride * (height + 3)):
            bytes_[i] = border
        for y in range(height):
            copy_bytes(address_of(src) + y * width, padded + (y + 1) * stride + 1, width)
        return
    size = height * width
    e = np.uint32(8)
    s = np.uint32(16)
    colour = np.uint32(0)
    if not black:
        for c in range(3):
            level = np.uint32(fill_byte(args, fill_at + c))
            colour = or_u32(colour, shl_u32(level, np.uint32(8 * c)))
    words = as_u32(padded)
    last = (height + 1) * stride
    for i in range(stride):
        words[i] = colour
    for i in range(last, last + 2 * stride):
        words[i] = colour
    for y in range(height):
        row = (y + 1) * stride
        at = y * width
        words[row] = colour
        for x in range(width):
            g = shl_u32(np.uint32(src[at + size + x]), e)
            b = shl_u32(np.uint32(src[at + 2 * size + x]), s)
            words[row + 1 + x] = or_u32(or_u32(np.uint32(src[at + x]), g), b)
        words[row + width + 1] = colour
        words[row + width + 2] = colour


def fetch_nearest(padded: Any, dst: Any, at: Any, count: Any, xs: Any, ys: Any, index: Any, channels: Any, height: Any,
                  width: Any) -> None:  # fmt: skip
    """Pixels at .. of the result, out of the padded image. Whatever is outside falls on its border."""
    last_x = np.float32(width)
    last_y = np.float32(height)
    minus = np.float32(-1.0)
    stride = np.int32(width + 3)
    first = np.int32(width + 4)
    for i in range(count):
        sx = np.int32(bounded(rint32(xs[i]), minus, last_x))
        sy = np.int32(bounded(rint32(ys[i]), minus, last_y))
        index[i] = add_i32(add_i32(mul_i32(sy, stride), sx), first)
    if channels == 1:
        bytes_ = as_u8(padded)
        for i in range(count):
            dst[at + i] = bytes_[index[i]]
        return
    size = height * width
    words = as_u32(padded)
    found = as_u32(address_of(xs))
    for i in range(count):
        found[i] = words[index[i]]
    for i in range(count):
        v = found[i]
        dst[at + i] = np.uint8(v)
        dst[at + size + i] = np.uint8(shr_u32(v, np.uint32(8)))
        dst[at + 2 * size + i] = np.uint8(shr_u32(v, np.uint32(16)))


def blend(t0: Any, t1: Any, b0: Any, b1: Any, fx: Any, fy: Any) -> Any:
    """Four levels as float32, bilinear."""
    up = t0 + (t1 - t0) * fx
    down = b0 + (b1 - b0) * fx
    return up + (down - up) * fy


def byte_of(word: Any, shift: Any) -> Any:
    return np.float32(np.int32(and_u32(shr_u32(word, shift), np.uint32(255))))


def fetch_bilinear(padded: Any, dst: Any, at: Any, count: Any, xs: Any, ys: Any, index: Any, work: Any, room: Any,
                   args: Any, fill_at: Any, channels: Any, height: Any, width: Any) -> None:  # fmt: skip
    """The same, bilinear: black outside, then blended with the fill by the share of the image, where there is a
    fill."""
    last_x = np.float32(width)
    last_y = np.float32(height)
    minus = np.float32(-1.0)
    wide = np.int32(width + 3)
    stride = width + 3
    columns = np.int32(width)
    rows = np.int32(height)
    one = np.int32(1)
    share = as_f32(work)
    filled = args[fill_at] == args[fill_at]
    for i in range(count):
        sx = bounded(xs[i], minus, last_x)
        sy = bounded(ys[i], minus, last_y)
        ix = np.int32(sx + ONE)  # sx >= -1, so truncation is floor
        iy = np.int32(sy + ONE)
        index[i] = add_i32(mul_i32(iy, wide), ix)
        xs[i] = sx - (np.float32(ix) - ONE)
        ys[i] = sy - (np.float32(iy) - ONE)
        if filled:
            # The share of the four taps that lies in the image: at the border one side of the pair is outside.
            left = ONE - xs[i] if ix >= one else ZERO
            left = left if ix <= columns else ZERO
            right = xs[i] if ix < columns else ZERO
            above = ONE - ys[i] if iy >= one else ZERO
            above = above if iy <= rows else ZERO
            below = ys[i] if iy < rows else ZERO
            share[i] = (left + right) * (above + below)
    size = height * width
    if channels == 1:
        top = as_u16(work + 8 * room)
        bottom = as_u16(work + 12 * room)
        for i in range(count):
            place = padded + np.int64(index[i])
            top[i] = as_u16(place)[0]
            bottom[i] = as_u16(place + stride)[0]
        low = np.uint16(255)
        eight = np.uint16(8)
        fill = fill_level(args, fill_at)
        for i in range(count):
            t0 = np.float32(top[i] & low)
            t1 = np.float32(top[i] >> eight)
            b0 = np.float32(bottom[i] & low)
            b1 = np.float32(bottom[i] >> eight)
            v = blend(t0, t1, b0, b1, xs[i], ys[i])
            if filled:
                v = (v - fill) * share[i] + fill
            dst[at + i] = np.uint8(np.int32(rint32(v)))
        return
    tops = as_u64(work + 8 * room)
    bottoms = as_u64(work + 16 * room)
    for i in range(count):
        place = padded + 4 * np.int64(index[i])
        tops[i] = as_u64(place)[0]
        bottoms[i] = as_u64(place + 4 * stride)[0]
    t = as_u32(work + 8 * room)
    b = as_u32(work + 16 * room)
    for c in range(3):
        shift = np.uint32(8 * c)
        fill = fill_level(args, fill_at + c)
        plane = at + c * size
        for i in range(count):
            t0 = byte_of(t[2 * i], shift)
            t1 = byte_of(t[2 * i + 1], shift)
            b0 = byte_of(b[2 * i], shift)
            b1 = byte_of(b[2 * i + 1], shift)
            v = blend(t0, t1, b0, b1, xs[i], ys[i])
            if filled:
                v = (v - fill) * share[i] + fill
            dst[plane + i] = np.uint8(np.int32(rint32(v)))


def warp(kind: Any, bilinear: Any, src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any,
         width: Any) -> Any:  # fmt: skip
    """kind: 0 affine, 1 perspective."""
    fill_at = 8 if kind == 1 else 6
    rows = max(WARP_BAND // width, 1)
    room = rows * width + 64  # pixels of a band
    xs = as_f32(work)
    ys = as_f32(work + 4 * room)
    index = as_i32(work + 8 * room)
    rest = work + 12 * room
    padded = rest + 24 * room
    pad_image(src, padded, channels, height, width, args, fill_at, bilinear)
    for top in range(0, height, rows):
        here = min(rows, height - top)
        count = here * width
        if kind == 1:
            perspective_points(args, top, here, xs, ys, height, width)
        else:
            affine_points(args, top, here, xs, ys, height, width)
        if bilinear:
            fetch_bilinear(padded, dst, top * width, count, xs, ys, index, rest, room, args, fill_at, channels, height,
                           width)  # fmt: skip
        else:
            fetch_nearest(padded, dst, top * width, count, xs, ys, index, channels, height, width)
    return 0


def affine_nearest(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    if (
        args[0] == 1.0
        and args[3] == 0.0
        and args[4] == 1.0
        and shift_rows(src, dst, args, channels, height, width) != 0
    ):
        return 0
    return warp(0, False, src, dst, work, args, channels, height, width)


def affine_bilinear(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    return warp(0, True, src, dst, work, args, channels, height, width)


def perspective_nearest(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    return warp(1, False, src, dst, work, args, channels, height, width)


def perspective_bilinear(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    return warp(1, True, src, dst, work, args, channels, height, width)
