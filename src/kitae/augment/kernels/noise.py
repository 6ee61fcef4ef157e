"""Gaussian noise, salt and pepper: a random word for every pixel, hashed from the sample's key and its place."""

from __future__ import annotations

from typing import Any

import numpy as np

from kitae.augment.ops.noise import QUANTILE_STEP
from kitae.native.link import add_i32, add_u32, as_i16, as_i64, as_u16, as_u32, mul_u32, shr_u32, xor_u32


def scramble(place: Any, low: Any, high: Any) -> Any:
    """32 random bits for a place under a key of two words.

    Two rounds of xor-shift and multiply (constants of Ettinger's "lowbias32", whose avalanche bias is below 0.2 bits),
    one key word before each.
    """
    x = add_u32(mul_u32(place, np.uint32(0x9E3779B9)), low)
    x = xor_u32(x, shr_u32(x, np.uint32(16)))
    x = mul_u32(x, np.uint32(0x7FEB352D))
    x = xor_u32(x, shr_u32(x, np.uint32(15)))
    x = add_u32(x, high)
    x = mul_u32(x, np.uint32(0x846CA68B))
    return xor_u32(x, shr_u32(x, np.uint32(16)))


def gaussian_noise(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """Two values to a word: its lower half, then its upper. The driver puts the table's address first in `work`."""
    low = np.uint32(np.int64(args[1]))
    high = np.uint32(np.int64(args[0]))
    table = as_i16(as_i64(work)[0])
    words = as_u32(work + 64)
    halves = as_u16(work + 64)
    normals = as_i16(work + 64 + 4096)
    mean = np.float32(args[2] * 255.0)
    sigma = np.float32(args[3] * 255.0)
    step = np.float32(QUANTILE_STEP)
    size = channels * height * width
    mask = np.uint16(0x7FFF)
    top = np.int32(255)
    zero = np.int32(0)
    for start in range(0, size, 2048):
        count = min(size - start, 2048)
        first = np.uint32(start // 2)
        for j in range((count + 1) // 2):
            words[j] = scramble(add_u32(first, np.uint32(np.int32(j))), low, high)
        for i in range(count):
            normals[i] = table[halves[i] & mask]
        for i in range(count):
            z = np.float32(np.int32(normals[i])) * step
            z = -z if halves[i] > mask else z
            v = add_i32(np.int32(src[start + i]), np.int32(mean + z * sigma))
            v = v if v > zero else zero
            dst[start + i] = np.uint8(v if v < top else top)
    return 0


def salt_and_pepper(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    low = np.uint32(np.int64(args[1]))
    high = np.uint32(np.int64(args[0]))
    one = np.uint32(1)
    hit = np.uint32(np.int64(args[2] * 2147483648.0))
    salt = np.uint32(np.int64(args[2] * args[3] * 2147483648.0))
    words = as_u32(work)
    size = height * width
    for start in range(0, size, 1024):
        count = min(size - start, 1024)
        first = np.uint32(start)
        for i in range(count):
            words[i] = shr_u32(scramble(add_u32(first, np.uint32(np.int32(i))), low, high), one)
        for c in range(channels):
            at = c * size + start
            for i in range(count):
                v = src[at + i]
                spot = np.uint8(255) if words[i] < salt else np.uint8(0)
                dst[at + i] = spot if words[i] < hit else v
    return 0
