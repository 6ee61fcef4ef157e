"""Brightness, contrast, saturation, hue and the rest that looks at one pixel at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from kitae.augment.kernels.link import HAS_VBMI, add_i32, address_of, as_u8, fma32, look_up64

TOP = np.float32(255.0)
ZERO = np.float32(0.0)
RED, GREEN, BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)
TWO, FOUR, SIX = np.float32(2.0), np.float32(4.0), np.float32(6.0)
ONE, THREE, FIVE = np.float32(1.0), np.float32(3.0), np.float32(5.0)
SPREAD = np.float32(255.999 / 255.0)  # torchvision's float to uint8: [0, 1] times 255.999, truncated


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
        stop = start + (size & ~63)
        for i in range(start, stop, 64):
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
        for i in range(size):
            dst[i] = src[i]
        return 0
    factor = np.float32(args[0])
    rest = np.float32(1.0 - args[0])
    for i in range(size):
        r = src[i]
        g = src[i + size]
        b = src[i + 2 * size]
        l = grey(r, g, b)
        dst[i] = level(fma32(l, rest, np.float32(r) * factor))
        dst[i + size] = level(fma32(l, rest, np.float32(g) * factor))
        dst[i + 2 * size] = level(fma32(l, rest, np.float32(b) * factor))
    return 0


def grayscale(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    size = height * width
    if channels == 1:
        for i in range(size):
            dst[i] = src[i]
        return 0
    for i in range(size):
        l = np.uint8(np.int32(grey(src[i], src[i + size], src[i + 2 * size])))
        dst[i] = l
        dst[i + size] = l
        dst[i + 2 * size] = l
    return 0


def hue(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """Turns the hue without leaving RGB.

    With M, m the largest and smallest channel and d = M - m, the HSV hexagon's position times d is linear in the
    channels, so no division is needed: h = d * 6 * hue. A channel of the result is M - clamp(min(k, 4d - k), 0, d)
    with k = h + 5d, 3d, d (mod 6d) for red, green, blue.
    """
    size = height * width
    if channels == 1:
        for i in range(size):
            dst[i] = src[i]
        return 0
    turn = np.float32(6.0 * (args[0] - np.floor(args[0])))
    for i in range(size):
        r = np.float32(src[i])
        g = np.float32(src[i + size])
        b = np.float32(src[i + 2 * size])
        high = r if r > g else g
        high = high if high > b else b
        low = r if r < g else g
        low = low if low < b else b
        d = high - low
        d2 = d + d
        d4 = d2 + d2
        d6 = d4 + d2
        h = b - r + d2 if high == g else r - g + d4
        h = g - b if high == r else h
        h = h + d * turn
        h = h + d6 if h < ZERO else h
        h = h - d6 if h >= d6 else h
        for c in range(3):
            k = h + d * np.float32(5 - 2 * c)
            k = k - d6 if k >= d6 else k
            other = d4 - k
            k = k if k < other else other
            k = k if k < d else d
            k = k if k > ZERO else ZERO
            dst[i + c * size] = np.uint8(np.int32((high - k) * SPREAD))
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
