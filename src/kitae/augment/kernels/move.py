"""Crop, flips, copies: rows of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from kitae.augment.kernels.link import address_of


def copy(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    for i in range(channels * height * width):
        dst[i] = src[i]
    return 0


def planar(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """[H, W, C] to [C, H, W]."""
    size = height * width
    if channels == 3:
        for i in range(size):
            dst[i] = src[3 * i]
            dst[i + size] = src[3 * i + 1]
            dst[i + 2 * size] = src[3 * i + 2]
    else:
        for i in range(size):
            dst[i] = src[i]
    return 0


def hflip(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    for row in range(channels * height):
        at = row * width
        end = at + width - 1
        for x in range(width):
            dst[at + x] = src[end - x]
    return 0


def vflip(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    for c in range(channels):
        for y in range(height):
            at = (c * height + y) * width
            other = (c * height + height - 1 - y) * width
            for x in range(width):
                dst[at + x] = src[other + x]
    return 0


def inside(i: Any, size: Any, mode: Any) -> Any:
    """The row or column that padding shows at i: mirrored (mode 1) or the edge (mode 2)."""
    if mode == 1:
        i = -i if i < 0 else i
        return 2 * (size - 1) - i if i >= size else i
    i = 0 if i < 0 else i
    return size - 1 if i >= size else i


def crop(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    top = np.int64(args[0])
    left = np.int64(args[1])
    rows = np.int64(args[2])
    columns = np.int64(args[3])
    mode = np.int64(args[4])
    # Columns [begin, end) of the result lie inside the image.
    begin = min(max(-left, 0), columns)
    end = max(min(width - left, columns), begin)
    for c in range(channels):
        fill = np.uint8(args[5 + c])
        plane = c * height * width
        for y in range(rows):
            at = (c * rows + y) * columns
            row = top + y
            if mode == 0 and (row < 0 or row >= height):
                for x in range(columns):
                    dst[at + x] = fill
                continue
            base = plane + inside(row, height, mode) * width
            start = base + left
            for x in range(begin, end):
                dst[at + x] = src[start + x]
            if mode == 0:
                for x in range(begin):
                    dst[at + x] = fill
                for x in range(end, columns):
                    dst[at + x] = fill
            else:
                for x in range(begin):
                    dst[at + x] = src[base + inside(left + x, width, mode)]
                for x in range(end, columns):
                    dst[at + x] = src[base + inside(left + x, width, mode)]
    return 0


def erase(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """Copies, unless it runs in place."""
    if address_of(src) != address_of(dst):
        copy(src, dst, work, args, channels, height, width)
    top = np.int64(args[0])
    left = np.int64(args[1])
    rows = np.int64(args[2])
    columns = np.int64(args[3])
    for c in range(channels):
        value = np.uint8(args[4 + c])
        for y in range(top, top + rows):
            at = (c * height + y) * width
            for x in range(left, left + columns):
                dst[at + x] = value
    return 0
