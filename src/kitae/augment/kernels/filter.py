"""Blur, sharpness, and the ops that need a histogram."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kitae.augment.kernels.color import TOP, ZERO, level, look_up
from kitae.augment.kernels.move import copy_bytes, inside
from kitae.augment.kernels.warp import rint32
from kitae.native.link import add_i32, add_u16, address_of, as_f32, as_i32, as_u8, fma32, mul_u16, mulhi_u16


def gaussian_weights(size: Any, sigma: Any, weights: Any) -> None:
    """torchvision's kernel: exp(-(x / sigma)**2) on points from -(size - 1) / sqrt(8) to the opposite, normalised."""
    limit = (size - 1) / (2.0 * math.sqrt(2.0))
    total = 0.0
    for i in range(size):
        x = 0.0 if size == 1 else (-limit + 2.0 * limit * i / (size - 1)) / sigma
        total += math.exp(-x * x)
    for i in range(size):
        x = 0.0 if size == 1 else (-limit + 2.0 * limit * i / (size - 1)) / sigma
        weights[i] = np.float32(math.exp(-x * x) / total)


BLUR_BAND = 2048  # values of a band of rows, as float32 in the innermost cache


def blur_down(src: Any, first: Any, count: Any, width: Any, size: Any, weights: Any, out: Any) -> None:
    """out[i] = weighted sum down the column about src[first + i], for rows whose neighbours all exist."""
    if size == 3:
        a = weights[0]
        b = weights[1]
        for i in range(count):
            at = first + i
            ends = np.float32(add_i32(np.int32(src[at - width]), np.int32(src[at + width])))
            out[i] = fma32(np.float32(src[at]), b, ends * a)
    elif size == 5:
        a = weights[0]
        b = weights[1]
        c = weights[2]
        for i in range(count):
            at = first + i
            ends = np.float32(add_i32(np.int32(src[at - 2 * width]), np.int32(src[at + 2 * width])))
            near = np.float32(add_i32(np.int32(src[at - width]), np.int32(src[at + width])))
            out[i] = fma32(np.float32(src[at]), c, fma32(near, b, ends * a))
    else:
        reach = size // 2
        middle = weights[reach]
        for i in range(count):
            out[i] = np.float32(src[first + i]) * middle
        for t in range(reach):
            w = weights[t]
            off = (reach - t) * width
            for i in range(count):
                at = first + i
                both = np.float32(add_i32(np.int32(src[at - off]), np.int32(src[at + off])))
                out[i] = fma32(both, w, out[i])


def blur_across(band: Any, first: Any, count: Any, size: Any, weights: Any, dst: Any, at: Any, total: Any) -> None:
    """dst[at + i] = rounded weighted sum along the row about band[first + i], as if rows had no ends."""
    if size == 3:
        a = weights[0]
        b = weights[1]
        for i in range(count):
            j = first + i
            v = rint32(fma32(band[j], b, (band[j - 1] + band[j + 1]) * a))
            dst[at + i] = np.uint8(np.int32(v if v < TOP else TOP))
    elif size == 5:
        a = weights[0]
        b = weights[1]
        c = weights[2]
        for i in range(count):
            j = first + i
            v = fma32(band[j], c, fma32(band[j - 1] + band[j + 1], b, (band[j - 2] + band[j + 2]) * a))
            v = rint32(v)
            dst[at + i] = np.uint8(np.int32(v if v < TOP else TOP))
    else:
        reach = size // 2
        middle = weights[reach]
        for i in range(count):
            total[i] = band[first + i] * middle
        for t in range(reach):
            w = weights[t]
            off = reach - t
            for i in range(count):
                total[i] = fma32(band[first + i - off] + band[first + i + off], w, total[i])
        for i in range(count):
            v = rint32(total[i])
            dst[at + i] = np.uint8(np.int32(v if v < TOP else TOP))


def gaussian_blur(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """Down, then across, on bands of rows in one run each; the ends of rows, wrong after a run, are computed again."""
    size_x = np.int64(args[0])
    size_y = np.int64(args[1])
    reach_x = size_x // 2
    reach_y = size_y // 2
    across = as_f32(work)
    down = as_f32(work + 256)
    rows = max(BLUR_BAND // width, 1)
    step = 4 * ((rows * width + 2 * reach_x + 31) & ~15)
    band = as_f32(work + 512)
    total = as_f32(work + 512 + step)
    gaussian_weights(size_x, args[2], across)
    gaussian_weights(size_y, args[3], down)
    for c in range(channels):
        plane = c * height * width
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            begin = min(max(reach_y, top), bottom)
            end = max(min(height - reach_y, bottom), begin)
            run = as_f32(work + 512 + 4 * (reach_x + (begin - top) * width))
            blur_down(src, plane + begin * width, (end - begin) * width, width, size_y, down, run)
            for y in range(top, bottom):
                if y < begin or y >= end:
                    row = as_f32(work + 512 + 4 * (reach_x + (y - top) * width))
                    for x in range(width):
                        row[x] = ZERO
                    for t in range(size_y):
                        w = down[t]
                        at = plane + inside(y + t - reach_y, height, 1) * width
                        for x in range(width):
                            row[x] = fma32(np.float32(src[at + x]), w, row[x])
            count = (bottom - top) * width
            blur_across(band, reach_x, count, size_x, across, dst, plane + top * width, total)
            for y in range(top, bottom):
                row = as_f32(work + 512 + 4 * (reach_x + (y - top) * width))
                for side in range(2):
                    for j in range(reach_x):
                        x = width - 1 - j if side == 1 else j
                        v = ZERO
                        for t in range(size_x):
                            v = fma32(row[inside(x + t - reach_x, width, 1)], across[t], v)
                        v = rint32(v)
                        dst[plane + y * width + x] = np.uint8(np.int32(v if v < TOP else TOP))
    return 0


def sharpness(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    rest = np.float32(1.0 - args[0])
    four = np.uint16(4)
    half = np.uint16(6)
    thirteenth = np.uint16(5042)  # (n + 6) * 5042 >> 16 is n / 13 rounded, for all n up to 13 * 255
    if width <= 2 or height <= 2:
        return copy_bytes(address_of(src), address_of(dst), channels * height * width)
    for c in range(channels):
        plane = c * height * width
        end = plane + (height - 1) * width
        for x in range(width):
            dst[plane + x] = src[plane + x]
            dst[end + x] = src[end + x]
        # The inner rows in one run, borders included, which are restored afterwards.
        # The first and last pixel are left out: they are border, and their neighbours may lie outside the batch.
        for i in range(plane + width + 1, end - 1):
            s = add_u16(
                add_u16(np.uint16(src[i - width - 1]), np.uint16(src[i - width])), np.uint16(src[i - width + 1])
            )
            t = add_u16(
                add_u16(np.uint16(src[i + width - 1]), np.uint16(src[i + width])), np.uint16(src[i + width + 1])
            )
            own = np.uint16(src[i])
            s = add_u16(s, add_u16(np.uint16(src[i - 1]), np.uint16(src[i + 1])))
            s = add_u16(add_u16(s, t), mul_u16(own, add_u16(four, np.uint16(1))))
            smooth = np.float32(np.int32(mulhi_u16(add_u16(s, half), thirteenth)))
            value = np.float32(np.int32(own))
            dst[i] = level(value + (smooth - value) * rest)
        for y in range(1, height - 1):
            at = plane + y * width
            dst[at] = src[at]
            dst[at + width - 1] = src[at + width - 1]
    return 0


def autocontrast(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    size = height * width
    table = as_u8(work)
    for c in range(channels):
        start = c * size
        low = np.uint8(255)
        high = np.uint8(0)
        for i in range(start, start + size):
            v = src[i]
            low = v if v < low else low
            high = v if v > high else high
        if low == high:
            copy_bytes(address_of(src) + start, address_of(dst) + start, size)
            continue
        first = np.float32(low)
        scale = (np.float32(high) - first) * np.float32(1.0 / 255.0)
        for v in range(256):
            table[v] = level((np.float32(np.int32(v)) - first) / scale)
        look_up(src, dst, start, size, table)
    return 0


def equalize(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    size = height * width
    table = as_u8(work)
    counts = as_i32(work + 1024)
    merged = as_i32(work + 8192)
    before = as_i32(work + 16384)
    one = np.int32(1)
    for c in range(channels):
        start = c * size
        for v in range(1024):
            counts[v] = np.int32(0)
        # Four histograms, so that runs of one level do not wait for each other.
        whole = size & ~3
        for i in range(start, start + whole, 4):
            a = np.int64(src[i])
            b = np.int64(src[i + 1]) + 256
            d = np.int64(src[i + 2]) + 512
            e = np.int64(src[i + 3]) + 768
            counts[a] = add_i32(counts[a], one)
            counts[b] = add_i32(counts[b], one)
            counts[d] = add_i32(counts[d], one)
            counts[e] = add_i32(counts[e], one)
        for i in range(start + whole, start + size):
            a = np.int64(src[i])
            counts[a] = add_i32(counts[a], one)
        for v in range(256):
            merged[v] = add_i32(add_i32(counts[v], counts[v + 256]), add_i32(counts[v + 512], counts[v + 768]))
        last = 255
        while merged[last] == np.int32(0):
            last -= 1
        step = (size - np.int64(merged[last])) // 255
        if step == 0:
            copy_bytes(address_of(src) + start, address_of(dst) + start, size)
            continue
        total = np.int32(step // 2)
        for v in range(256):
            before[v] = total
            total = add_i32(total, merged[v])
        whole_step = np.float64(step)
        for v in range(256):
            # Exact: both are integers below 2**31, so the quotient in float64 never crosses an integer.
            q = np.int32(np.float64(before[v]) / whole_step)
            table[v] = np.uint8(q if q < np.int32(255) else np.int32(255))
        table[0] = np.uint8(0)
        look_up(src, dst, start, size, table)
    return 0


def augmix_begin(src: Any, target: Any, keep: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """sums = weight * image; and the image is kept at address `keep`, unless that is 0."""
    sums = as_f32(address_of(target))
    weight = np.float32(args[0])
    size = channels * height * width
    for i in range(size):
        sums[i] = np.float32(src[i]) * weight
    if keep != 0:
        copy_bytes(address_of(src), keep, size)
    return 0


def chain_end(src: Any, target: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """sums += weight * image."""
    sums = as_f32(address_of(target))
    weight = np.float32(args[0])
    for i in range(channels * height * width):
        sums[i] = sums[i] + np.float32(src[i]) * weight
    return 0


def augmix_end(source: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """The sums, truncated to levels."""
    sums = as_f32(address_of(source))
    for i in range(channels * height * width):
        dst[i] = level(sums[i])
    return 0
