"""Resized crop: antialiased bilinear, in integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from kitae.augment.kernels.move import copy_bytes, window
from kitae.native.link import add_i32, address_of, as_f32, as_i32, as_u8, mul_i32, sar_i32, transpose16


def triangle_taps(size: Any, new: Any) -> Any:
    """Most taps of one output pixel."""
    scale = size / new
    if scale <= 1.0:
        return 2  # the two input pixels around its centre
    return np.int64(np.ceil(scale)) * 2 + 1


def work_bytes(height: int, width: int, new_height: int, new_width: int) -> int:
    """Bytes of work area for the largest windows: weights, and planes transposed between the two passes."""
    across = 2 * -(-max(width, new_width) // new_width) + 1
    down = 2 * -(-max(height, new_height) // new_height) + 1
    tall, wide = height + 16, new_width + 16
    weights = 4 * (max(new_height, new_width) + max(tall, wide)) + 8 * max(new_width * across, new_height * down)
    return weights + (width + across + new_width) * tall + 3 * (height + down) * wide + (64 << 10)


def triangle_weights(size: Any, new: Any, taps: Any, starts: Any, weights: Any, scratch: Any) -> Any:
    """Antialiased bilinear weights as integers times 2**precision, `taps` per pixel (padded with zeros), and the
    precision.

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
                  weights: Any, precision: Any, sums: Any) -> None:  # fmt: skip
    """Row i of the result is a weighted sum of rows starts[i] .. of the source; rows are `length` bytes."""
    shift = np.int32(precision)
    half = np.int32(1 << (precision - 1))
    top = np.int32(255)
    for i in range(new):
        at = np.int64(starts[i]) * src_stride
        out = i * dst_stride
        if taps == 2:
            w0 = weights[i * 2]
            w1 = weights[i * 2 + 1]
            for x in range(length):
                v = mul_i32(np.int32(src[at + x]), w0)
                v = add_i32(v, mul_i32(np.int32(src[at + src_stride + x]), w1))
                v = sar_i32(add_i32(v, half), shift)
                dst[out + x] = np.uint8(v if v < top else top)
        elif taps == 3:
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


def turn(src: Any, src_stride: Any, dst: Any, dst_stride: Any, rows: Any, columns: Any) -> None:
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


def resized_crop(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """Crop, then resize: along x first, rounded to levels, then along y, as Pillow and torchvision do.

    Both passes add up whole rows, which vectorises; along x the image is transposed for that, and back.
    """
    top, left, h, w = window(args)
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
