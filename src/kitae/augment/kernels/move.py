"""Crop, flips, copies: rows of bytes.

A row is moved in a few wide pieces, of which the last overlaps the one before. The compiler's own loop would first
check for overlap of source and target and then finish byte by byte, which takes longer than the row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kitae.native.link import address_of, as_u8, move16, move32, move64, turn16, turn32, turn64


def copy_bytes(source: Any, target: Any, count: Any) -> Any:
    if count >= 64:
        for i in range(0, count - 63, 64):
            move64(source + i, target + i)
        move64(source + count - 64, target + count - 64)
    elif count >= 32:
        move32(source, target)
        move32(source + count - 32, target + count - 32)
    elif count >= 16:
        move16(source, target)
        move16(source + count - 16, target + count - 16)
    else:
        s = as_u8(source)
        t = as_u8(target)
        for i in range(count):
            t[i] = s[i]
    return 0


def turn_bytes(source: Any, target: Any, count: Any) -> None:
    """Copy, the last byte first."""
    if count >= 64:
        for i in range(0, count - 63, 64):
            turn64(source + count - 64 - i, target + i)
        turn64(source, target + count - 64)
    elif count >= 32:
        turn32(source + count - 32, target)
        turn32(source, target + count - 32)
    elif count >= 16:
        turn16(source + count - 16, target)
        turn16(source, target + count - 16)
    else:
        s = as_u8(source)
        t = as_u8(target)
        for i in range(count):
            t[i] = s[count - 1 - i]


def fill_bytes(target: Any, value: Any, count: Any) -> None:
    t = as_u8(target)
    for i in range(count):
        t[i] = value


def planar(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """[H, W, C] to [C, H, W]."""
    size = height * width
    if channels == 3:
        for i in range(size):
            dst[i] = src[3 * i]
            dst[i + size] = src[3 * i + 1]
            dst[i + 2 * size] = src[3 * i + 2]
    else:
        copy_bytes(address_of(src), address_of(dst), size)
    return 0


def planes(source: Any, target: Any, line: Any, pixel: Any, channels: Any, height: Any, width: Any) -> None:
    """A window of [H, W, 1, 3 or 4] to [C, height, width]: `line` and `pixel` are the bytes of a row and of a pixel."""
    size = height * width
    for y in range(height):
        row = as_u8(source + y * line)
        at = target + y * width
        if pixel == 1:
            copy_bytes(source + y * line, at, width)
            continue
        for c in range(channels):
            out = as_u8(at + c * size)
            if pixel == 4:  # constant strides, so that the loops vectorise
                for x in range(width):
                    out[x] = row[4 * x + c]
            else:
                for x in range(width):
                    out[x] = row[3 * x + c]


def horizontal_flip(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    source = address_of(src)
    target = address_of(dst)
    for row in range(channels * height):
        turn_bytes(source + row * width, target + row * width, width)
    return 0


def vertical_flip(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    source = address_of(src)
    target = address_of(dst)
    for c in range(channels):
        plane = c * height * width
        for y in range(height):
            copy_bytes(source + plane + (height - 1 - y) * width, target + plane + y * width, width)
    return 0


def inside(i: Any, size: Any, mode: Any) -> Any:
    """The row or column that padding shows at i: mirrored (mode 1) or the edge (mode 2)."""
    if mode == 1:
        i = -i if i < 0 else i
        return 2 * (size - 1) - i if i >= size else i
    i = 0 if i < 0 else i
    return size - 1 if i >= size else i


def window(args: Any) -> Any:
    """Top, left, height and width, the first numbers of a step."""
    return np.int64(args[0]), np.int64(args[1]), np.int64(args[2]), np.int64(args[3])


def crop(src: Any, dst: Any, flip: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """`flip` (in place of a work area): 1 mirrors the result, for a flip that follows."""
    top, left, rows, columns = window(args)
    mode = np.int64(args[4])
    source = address_of(src)
    target = address_of(dst)
    # Columns [begin, end) of the window lie inside the image.
    begin = min(max(-left, 0), columns)
    end = max(min(width - left, columns), begin)
    for c in range(channels):
        fill = np.uint8(args[5 + c])
        plane = c * height * width
        for y in range(rows):
            at = target + (c * rows + y) * columns
            row = top + y
            if mode == 0 and (row < 0 or row >= height):
                fill_bytes(at, fill, columns)
                continue
            base = plane + inside(row, height, mode) * width
            start = source + base + left
            if flip != 0:
                turn_bytes(start + begin, at + columns - end, end - begin)
            else:
                copy_bytes(start + begin, at + begin, end - begin)
            out = as_u8(at)
            for x in range(begin):
                to = columns - 1 - x if flip != 0 else x
                out[to] = fill if mode == 0 else src[base + inside(left + x, width, mode)]
            for x in range(end, columns):
                to = columns - 1 - x if flip != 0 else x
                out[to] = fill if mode == 0 else src[base + inside(left + x, width, mode)]
    return 0


def erase(src: Any, dst: Any, work: Any, args: Any, channels: Any, height: Any, width: Any) -> Any:
    """Copies, unless it runs in place."""
    if address_of(src) != address_of(dst):
        copy_bytes(address_of(src), address_of(dst), channels * height * width)
    top, left, rows, columns = window(args)
    target = address_of(dst)
    for c in range(channels):
        value = np.uint8(args[4 + c])
        for y in range(top, top + rows):
            fill_bytes(target + (c * height + y) * width + left, value, columns)
    return 0
