"""Brightness, contrast, saturation, hue and the other ops that process one pixel at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from kitae.augment.kernels.move import copy_bytes
from kitae.native.link import (
    HAS_VBMI,
    add_i32,
    add_u16,
    address_of,
    as_u8,
    fma32,
    less_u16,
    look_up64,
    look_up512,
    mulhi_u16,
    shl_u16,
    sub_u16,
)

TOP = np.float32(255.0)
ZERO = np.float32(0.0)
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
ONE = np.float32(1.0)


def level(x: Any) -> Any:
    """A float32 clamped to [0, 255] and truncated."""
    x = x if x > ZERO else ZERO
    x = x if x < TOP else TOP
    return np.uint8(np.int32(x))


def look_up(src: Any, dst: Any, start: Any, size: Any, table: Any) -> Any:
    """dst = table[src] for `size` bytes from `start`; table: 256 bytes."""
    done = start
    if HAS_VBMI:
        source = address_of(src)
        target = address_of(dst)
        levels = address_of(table)
        many = start + (size & ~511)
        for i in range(start, many, 512):
            look_up512(source + i, target + i, levels)
        stop = start + (size & ~63)
        for i in range(many, stop, 64):
            look_up64(source + i, target + i, levels)
        done = stop
    for i in range(done, start + size):
        dst[i] = table[src[i]]
    return 0


def grey(r: Any, g: Any, b: Any) -> Any:
    """Grey of three levels, floored, as float32."""
    return np.float32(np.int32(fma32(np.float32(b), BLUE, fma32(np.float32(g), GREEN, np.float32(r) * RED))))


def brightness(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    factor = np.float32(args[0])
    if HAS_VBMI:
        table = as_u8(work)
        for v in range(256):
            table[v] = level(np.float32(np.int32(v)) * factor)
        return look_up(src, dst, 0, channels * height * width, table)
    for i in range(channels * height * width):
        dst[i] = level(np.float32(src[i]) * factor)
    return 0


def contrast(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    size = height * width
    total = np.int64(0)
    for start in range(0, size, 65536):  # a part's sum fits 32 bits, which is twice as many lanes
        part = np.int32(0)
        if channels == 3:
            for i in range(start, min(start + 65536, size)):
                part = add_i32(part, np.int32(grey(src[i], src[i + size], src[i + 2 * size])))
        else:
            for i in range(start, min(start + 65536, size)):
                part = add_i32(part, np.int32(src[i]))
        total += np.int64(part)
    factor = np.float32(args[0])
    mean = np.float32(np.float32(total) / np.float32(size))
    rest = np.float32(1.0 - args[0])
    if HAS_VBMI:
        table = as_u8(work)
        for v in range(256):
            table[v] = level(fma32(mean, rest, np.float32(np.int32(v)) * factor))
        return look_up(src, dst, 0, channels * size, table)
    for i in range(channels * size):
        dst[i] = level(fma32(mean, rest, np.float32(src[i]) * factor))
    return 0


def saturation(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    size = height * width
    if channels == 1:
        return copy_bytes(address_of(src), address_of(dst), size)
    factor = np.float32(args[0])
    rest = np.float32(1.0 - args[0])
    for i in range(size):
        r = src[i]
        g = src[i + size]
        b = src[i + 2 * size]
        mean = grey(r, g, b)
        dst[i] = level(fma32(mean, rest, np.float32(r) * factor))
        dst[i + size] = level(fma32(mean, rest, np.float32(g) * factor))
        dst[i + 2 * size] = level(fma32(mean, rest, np.float32(b) * factor))
    return 0


def grayscale(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    size = height * width
    if channels == 1:
        return copy_bytes(address_of(src), address_of(dst), size)
    for i in range(size):
        mean = np.uint8(np.int32(grey(src[i], src[i + size], src[i + 2 * size])))
        dst[i] = mean
        dst[i + size] = mean
        dst[i + 2 * size] = mean
    return 0


def folded(k: Any, d: Any) -> Any:
    """min(k, 4d - k), clamped to [0, d]."""
    other = less_u16(shl_u16(d, np.uint16(2)), k)
    k = k if k < other else other
    return k if k < d else d


def hue(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """Turns the hue without leaving RGB, without a division, in 16-bit integers.

    With M, m the largest and smallest channel and d = M - m, the HSV hexagon's position times d is linear in the
    channels, so no division is needed: h = d * 6 * hue. A channel of the result is M - clamp(min(k, 4d - k), 0, d)
    with k = h + 5d, 3d, d (mod 6d) for red, green, blue.

    Numbers are 32nds of a level, below 2**16 since 6 * 255 * 32 is. min(k, k - n) with a difference that wraps is
    k mod n for k < 2n. The result, as torchvision's, is the level times 255.999 / 255, truncated.
    """
    size = height * width
    if channels == 1:
        return copy_bytes(address_of(src), address_of(dst), size)
    turn = np.uint16(np.int64(np.rint(49152.0 * (args[0] - np.floor(args[0])))) % 49152)  # 8192ths of a sixth
    five = np.uint16(5)
    spread = np.uint16(2056)  # 65536 / 32 * 255.999 / 255
    one = np.uint16(1)
    two = np.uint16(2)
    three = np.uint16(3)
    for i in range(size):
        r = shl_u16(np.uint16(src[i]), five)
        g = shl_u16(np.uint16(src[i + size]), five)
        b = shl_u16(np.uint16(src[i + 2 * size]), five)
        high = r if r > g else g
        high = high if high > b else b
        low = r if r < g else g
        low = low if low < b else b
        d = sub_u16(high, low)
        d2 = shl_u16(d, one)
        d3 = add_u16(d2, d)
        d4 = shl_u16(d, two)
        d6 = shl_u16(d3, one)
        # Position on the hexagon, in [0, 6d).
        h = add_u16(sub_u16(b, r), d2) if high == g else add_u16(sub_u16(r, g), d4)
        p = sub_u16(g, b)
        p = add_u16(p, d6) if g < b else p
        h = p if high == r else h
        # Turned: d * turn / 256 is its share of 6d.
        rest = sub_u16(d6, mulhi_u16(shl_u16(d, three), turn))
        q = sub_u16(h, rest)
        h = add_u16(q, d6) if h < rest else q
        k = sub_u16(h, d)
        k = add_u16(k, d6) if h < d else k
        dst[i] = np.uint8(mulhi_u16(sub_u16(high, folded(k, d)), spread))
        k = sub_u16(h, d3) if h >= d3 else add_u16(h, d3)
        dst[i + size] = np.uint8(mulhi_u16(sub_u16(high, folded(k, d)), spread))
        k = add_u16(h, d)
        other = sub_u16(k, d6)
        k = k if k < other else other
        dst[i + 2 * size] = np.uint8(mulhi_u16(sub_u16(high, folded(k, d)), spread))
    return 0


def invert(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    for i in range(channels * height * width):
        dst[i] = ~src[i]
    return 0


def posterize(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    mask = np.uint8((0xFF << (8 - np.int64(args[0]))) & 0xFF)
    for i in range(channels * height * width):
        dst[i] = src[i] & mask
    return 0


def solarize(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    threshold = np.int32(np.ceil(np.float32(args[0])))
    for i in range(channels * height * width):
        v = src[i]
        dst[i] = ~v if np.int32(v) >= threshold else v
    return 0
