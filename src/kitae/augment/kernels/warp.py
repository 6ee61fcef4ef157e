"""Affine, perspective and resized crop.

A warp finds, for a row of the result, where each pixel comes from (vectorised arithmetic), then fetches. Coordinates are
float32, multiplied and added in the order written here, which the torch executor repeats.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kitae.augment.kernels.color import ONE, ZERO
from kitae.augment.kernels.move import copy_bytes, fill_bytes
from kitae.augment.kernels.link import (
    add_i32,
    address_of,
    as_f32,
    as_i32,
    as_u8,
    as_u16,
    mul_i32,
    sar_i32,
    transpose16,
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


def shift_rows(src: Any, dst: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """Translations and shears along x, whose rows are moved whole. 0 where a shift is too near a tie: nothing is done."""
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
            fill = np.uint8(fill_level(args, 6 + c))
            at = (c * height + y) * width
            start = (c * height + row) * width + dx
            fill_bytes(target + at, fill, begin)
            copy_bytes(source + start + begin, target + at + begin, end - begin)
            fill_bytes(target + at + end, fill, width - end)
    return 1


def affine_nearest(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    if (
        args[0] == 1.0
        and args[3] == 0.0
        and args[4] == 1.0
        and shift_rows(src, dst, args, channels, height, width) != 0
    ):
        return 0
    a = np.float32(args[0])
    d = np.float32(args[3])
    centre_x = np.float32(0.5 * (width - 1))
    centre_y = np.float32(0.5 * (height - 1))
    last_x = np.float32(width)
    last_y = np.float32(height)
    columns = np.int32(width)
    size = height * width
    index = as_i32(work)
    minus = np.float32(-1.0)
    for y in range(height):
        yc = np.float32(y) - centre_y
        base_x = np.float32(args[1]) * yc + np.float32(args[2])
        base_y = np.float32(args[4]) * yc + np.float32(args[5])
        first = np.int32(width)
        last = np.int32(-1)
        for x in range(width):
            xc = np.float32(np.int32(x)) - centre_x
            sx = bounded(rint32((a * xc + base_x) + centre_x), minus, last_x)
            sy = bounded(rint32((d * xc + base_y) + centre_y), minus, last_y)
            inside = sx >= ZERO and sx < last_x and sy >= ZERO and sy < last_y
            index[x] = add_i32(mul_i32(np.int32(sy), columns), np.int32(sx))
            xi = np.int32(x)
            low = xi if inside else columns
            high = xi if inside else np.int32(-1)
            first = low if low < first else first
            last = high if high > last else last
        begin = np.int64(first)
        end = np.int64(last) + 1
        if end <= begin:
            begin = width
            end = width
        at = y * width
        for c in range(channels):
            fill = np.uint8(fill_level(args, 6 + c))
            row = address_of(dst) + at + c * size
            fill_bytes(row, fill, begin)
            fill_bytes(row + end, fill, width - end)
        if channels == 3:
            for x in range(begin, end):
                i = index[x]
                dst[at + x] = src[i]
                dst[at + size + x] = src[i + size]
                dst[at + 2 * size + x] = src[i + 2 * size]
        else:
            for x in range(begin, end):
                dst[at + x] = src[index[x]]
    return 0


def pad_image(src: Any, padded: Any, channels: Any, height: Any, width: Any, args: Any, at: Any, plain: Any) -> Any:
    """The image with a border of one pixel left and top and two right and bottom: black, or the fill colour."""
    stride = width + 3
    for c in range(channels):
        fill = np.uint8(0) if plain else np.uint8(fill_level(args, at + c))
        plane = c * (height + 3) * stride
        for i in range(stride):
            padded[plane + i] = fill
        for y in range(height):
            row = plane + (y + 1) * stride
            start = (c * height + y) * width
            padded[row] = fill
            copy_bytes(address_of(src) + start, address_of(padded) + row + 1, width)
            padded[row + width + 1] = fill
            padded[row + width + 2] = fill
        for i in range(2 * stride):
            padded[plane + (height + 1) * stride + i] = fill
    return 0


def fetch_nearest(
    padded: Any, dst: Any, xs: Any, ys: Any, index: Any, y: Any, channels: Any, height: Any, width: Any
) -> Any:
    """A row of the result from source coordinates xs, ys, out of the padded image."""
    stride = width + 3
    plane = (height + 3) * stride
    last_x = np.float32(width)
    last_y = np.float32(height)
    minus = np.float32(-1.0)
    wide = np.int32(stride)
    one = np.int32(1)
    for x in range(width):
        sx = bounded(rint32(xs[x]), minus, last_x)
        sy = bounded(rint32(ys[x]), minus, last_y)
        # Outside in one direction must not look inside in the other: the border row is fill all along.
        outside = sx < ZERO or sx >= last_x
        sy = minus if outside else sy
        index[x] = add_i32(mul_i32(add_i32(np.int32(sy), one), wide), add_i32(np.int32(sx), one))
    for c in range(channels):
        at = (c * height + y) * width
        base = c * plane
        for x in range(width):
            dst[at + x] = padded[base + index[x]]
    return 0


def fetch_bilinear(padded: Any, dst: Any, xs: Any, ys: Any, index: Any, work: Any, args: Any, fill_at: Any, y: Any,
                   channels: Any, height: Any, width: Any) -> Any:  # fmt: skip
    """The same, bilinear: black outside, then blended with the fill by the share of the image, where there is a fill."""
    stride = width + 3
    plane = (height + 3) * stride
    last_x = np.float32(width)
    last_y = np.float32(height)
    minus = np.float32(-1.0)
    wide = np.int32(stride)
    one = np.int32(1)
    line = 4 * ((width + 31) & ~15)
    part_x = as_f32(work)
    part_y = as_f32(work + line)
    share = as_f32(work + 2 * line)
    top = as_u16(work + 3 * line)
    bottom = as_u16(work + 4 * line)
    edge_x = np.float32(width - 1)
    edge_y = np.float32(height - 1)
    for x in range(width):
        sx = bounded(xs[x], minus, last_x)
        sy = bounded(ys[x], minus, last_y)
        ix = np.int32(sx + ONE)  # sx >= -1, so truncation is floor
        iy = np.int32(sy + ONE)
        fx = sx - (np.float32(ix) - ONE)
        fy = sy - (np.float32(iy) - ONE)
        part_x[x] = fx
        part_y[x] = fy
        index[x] = add_i32(mul_i32(iy, wide), ix)
        # The share of the four taps that lies in the image: at the border one side of the pair is outside.
        left = ONE - fx if sx >= ZERO else ZERO
        left = left if sx < last_x else ZERO
        right = fx if sx < edge_x else ZERO
        above = ONE - fy if sy >= ZERO else ZERO
        above = above if sy < last_y else ZERO
        below = fy if sy < edge_y else ZERO
        share[x] = (left + right) * (above + below)
    filled = args[fill_at] == args[fill_at]
    base = address_of(padded)
    for c in range(channels):
        for x in range(width):
            i = base + c * plane + np.int64(index[x])
            top[x] = as_u16(i)[0]
            bottom[x] = as_u16(i + stride)[0]
        at = (c * height + y) * width
        fill = fill_level(args, fill_at + c)
        low = np.uint16(255)
        eight = np.uint16(8)
        if filled:
            for x in range(width):
                t0 = np.float32(top[x] & low)
                t1 = np.float32(top[x] >> eight)
                b0 = np.float32(bottom[x] & low)
                b1 = np.float32(bottom[x] >> eight)
                up = t0 + (t1 - t0) * part_x[x]
                down = b0 + (b1 - b0) * part_x[x]
                v = up + (down - up) * part_y[x]
                v = (v - fill) * share[x] + fill
                dst[at + x] = np.uint8(np.int32(rint32(v)))
        else:
            for x in range(width):
                t0 = np.float32(top[x] & low)
                t1 = np.float32(top[x] >> eight)
                b0 = np.float32(bottom[x] & low)
                b1 = np.float32(bottom[x] >> eight)
                up = t0 + (t1 - t0) * part_x[x]
                down = b0 + (b1 - b0) * part_x[x]
                dst[at + x] = np.uint8(np.int32(rint32(up + (down - up) * part_y[x])))
    return 0


def affine_row(args: Any, y: Any, xs: Any, ys: Any, height: Any, width: Any) -> Any:
    a = np.float32(args[0])
    d = np.float32(args[3])
    centre_x = np.float32(0.5 * (width - 1))
    centre_y = np.float32(0.5 * (height - 1))
    yc = np.float32(y) - centre_y
    base_x = np.float32(args[1]) * yc + np.float32(args[2])
    base_y = np.float32(args[4]) * yc + np.float32(args[5])
    for x in range(width):
        xc = np.float32(np.int32(x)) - centre_x
        xs[x] = (a * xc + base_x) + centre_x
        ys[x] = (d * xc + base_y) + centre_y
    return 0


def perspective_row(args: Any, y: Any, xs: Any, ys: Any, height: Any, width: Any) -> Any:
    a = np.float32(args[0])
    d = np.float32(args[3])
    g = np.float32(args[6])
    yc = np.float32(y) + HALF
    base_x = np.float32(args[1]) * yc + np.float32(args[2])
    base_y = np.float32(args[4]) * yc + np.float32(args[5])
    base_w = np.float32(args[7]) * yc + ONE
    for x in range(width):
        xc = np.float32(np.int32(x)) + HALF
        w = g * xc + base_w
        # Bounded, so that a point at infinity is merely outside (and NaN is the left border).
        xs[x] = bounded((a * xc + base_x) / w - HALF, -FAR, FAR)
        ys[x] = bounded((d * xc + base_y) / w - HALF, -FAR, FAR)
    return 0


def warp(
    kind: Any, bilinear: Any, src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any
) -> Any:
    fill_at = 8 if kind == 1 else 6
    line = 4 * ((width + 31) & ~15)
    padded = as_u8(work + 8 * line)
    pad_image(src, padded, channels, height, width, args, fill_at, bilinear)
    xs = as_f32(work)
    ys = as_f32(work + line)
    index = as_i32(work + 2 * line)
    for y in range(height):
        if kind == 1:
            perspective_row(args, y, xs, ys, height, width)
        else:
            affine_row(args, y, xs, ys, height, width)
        if bilinear:
            fetch_bilinear(padded, dst, xs, ys, index, work + 3 * line, args, fill_at, y, channels, height, width)
        else:
            fetch_nearest(padded, dst, xs, ys, index, y, channels, height, width)
    return 0


def affine_bilinear(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    return warp(0, True, src, dst, work, args, channels, height, width)


def perspective_nearest(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    return warp(1, False, src, dst, work, args, channels, height, width)


def perspective_bilinear(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    return warp(1, True, src, dst, work, args, channels, height, width)


# Resizing ---------------------------------------------------------------------------------------------------------------


def triangle_taps(size: Any, new: Any) -> Any:
    """Most taps of one output pixel."""
    scale = size / new
    support = scale if scale > 1.0 else 1.0
    return np.int64(np.ceil(support)) * 2 + 1


def triangle_weights(size: Any, new: Any, taps: Any, starts: Any, weights: Any, scratch: Any) -> Any:
    """Antialiased bilinear weights as integers times 2**precision, `taps` a pixel (zeros after its own), and the precision.

    A triangle as wide as an output pixel, at least two input pixels, about the output pixel's centre.
    """
    scale = size / new
    support = scale if scale > 1.0 else 1.0
    inverse = 1.0 / support
    largest = 0.0
    for i in range(new):
        centre = scale * (i + 0.5)
        begin = max(np.int64(centre - support + 0.5), 0)
        end = min(np.int64(centre + support + 0.5), size)
        total = 0.0
        for j in range(taps):
            w = 0.0
            if begin + j < end:
                w = 1.0 - abs((begin + j - centre + 0.5) * inverse)
                w = w if w > 0.0 else 0.0
            scratch[i * taps + j] = np.float32(w)
            total += w
        norm = 1.0 / total
        for j in range(taps):
            w = np.float64(scratch[i * taps + j]) * norm
            scratch[i * taps + j] = np.float32(w)
            largest = w if w > largest else largest
        starts[i] = np.int32(begin)
    precision = 0
    while precision < 22 and np.int64(0.5 + largest * (1 << (precision + 1))) < (1 << 15):
        precision += 1
    for i in range(new * taps):
        weights[i] = np.int32(np.float64(scratch[i]) * (1 << precision) + 0.5)
    return precision


def resample_rows(src: Any, src_stride: Any, dst: Any, dst_stride: Any, new: Any, length: Any, taps: Any, starts: Any,
                  weights: Any, precision: Any, sums: Any) -> Any:  # fmt: skip
    """Row i of the result is a weighted sum of rows starts[i] .. of the source; rows are `length` bytes."""
    shift = np.int32(precision)
    half = np.int32(1 << (precision - 1))
    top = np.int32(255)
    for i in range(new):
        at = np.int64(starts[i]) * src_stride
        out = i * dst_stride
        if taps == 3:
            w0 = weights[i * 3]
            w1 = weights[i * 3 + 1]
            w2 = weights[i * 3 + 2]
            for x in range(length):
                s = mul_i32(np.int32(src[at + x]), w0)
                s = add_i32(s, mul_i32(np.int32(src[at + src_stride + x]), w1))
                s = add_i32(s, mul_i32(np.int32(src[at + 2 * src_stride + x]), w2))
                v = sar_i32(add_i32(s, half), shift)
                dst[out + x] = np.uint8(v if v < top else top)
        else:
            for x in range(length):
                sums[x] = half
            for t in range(taps):
                w = weights[i * taps + t]
                row = at + t * src_stride
                if w != np.int32(0):
                    for x in range(length):
                        sums[x] = add_i32(sums[x], mul_i32(np.int32(src[row + x]), w))
            for x in range(length):
                v = sar_i32(sums[x], shift)
                dst[out + x] = np.uint8(v if v < top else top)
    return 0


def turn(src: Any, src_stride: Any, dst: Any, dst_stride: Any, rows: Any, columns: Any) -> Any:
    """Transpose bytes: `rows` x `columns` at src to `columns` x `rows` at dst."""
    whole_rows = rows & ~15
    whole_columns = columns & ~15
    for y in range(0, whole_rows, 16):
        for x in range(0, whole_columns, 16):
            transpose16(src + y * src_stride + x, src_stride, dst + x * dst_stride + y, dst_stride)
    s = as_u8(src)
    d = as_u8(dst)
    for y in range(rows):
        for x in range(whole_columns if y < whole_rows else 0, columns):
            d[x * dst_stride + y] = s[y * src_stride + x]
    return 0


def resized_crop(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """Crop, then resize: along x first, rounded to levels, then along y, as Pillow and torchvision do.

    Both passes add up whole rows, which vectorises; along x the image is transposed for that, and back.
    """
    top = np.int64(args[0])
    left = np.int64(args[1])
    h = np.int64(args[2])
    w = np.int64(args[3])
    new_h = np.int64(args[4])
    new_w = np.int64(args[5])
    taps_x = triangle_taps(w, new_w)
    taps_y = triangle_taps(h, new_h)
    tall = (h + 15) & ~15
    wide = (new_w + 15) & ~15
    starts = as_i32(work)
    at = work + 4 * (max(new_h, new_w) + 16)
    weights = as_i32(at)
    at += 4 * (max(new_w * taps_x, new_h * taps_y) + 16)
    loose = as_f32(at)
    at += 4 * (max(new_w * taps_x, new_h * taps_y) + 16)
    sums = as_i32(at)
    at += 4 * (max(tall, wide) + 16)
    turned = at
    at += (w + taps_x) * tall + 64
    narrow = at
    at += new_w * tall + 64
    back = at
    same_x = w == new_w
    same_y = h == new_h
    precision = 0
    if not same_x:
        precision = triangle_weights(w, new_w, taps_x, starts, weights, loose)
    pixels = address_of(src)
    plane = (h + taps_y) * wide
    for c in range(channels):
        start = pixels + (c * height + top) * width + left
        if same_x:
            for y in range(h):
                copy_bytes(start + y * width, back + c * plane + y * wide, w)
        else:
            turn(start, width, turned, tall, h, w)
            resample_rows(as_u8(turned), tall, as_u8(narrow), tall, new_w, h, taps_x, starts, weights, precision, sums)
            turn(narrow, tall, back + c * plane, wide, new_w, h)
    if not same_y:
        precision = triangle_weights(h, new_h, taps_y, starts, weights, loose)
    out = address_of(dst)
    for c in range(channels):
        target = as_u8(out + c * new_h * new_w)
        source = as_u8(back + c * plane)
        if same_y:
            for y in range(h):
                copy_bytes(back + c * plane + y * wide, out + (c * new_h + y) * new_w, new_w)
        else:
            resample_rows(source, wide, target, new_w, new_h, new_w, taps_y, starts, weights, precision, sums)
    return 0
