"""The first layer's filters, with the weights that pruning removed, as a PNG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MOST = 64  # filters
_COLUMNS = 12
_CELL = 12  # pixels a weight
_POSITIVE, _NEGATIVE, _REMOVED = np.array([[0x00, 0x5A, 0xB5], [0xB5, 0x2A, 0x1E], [0x3A, 0x3F, 0x44]]) / 255


def picture(weights: NDArray[np.float32], kept: NDArray[np.bool_]) -> bytes:
    """A PNG: one tile per input channel, blue for positive weights, red for negative, white near 0, dark for removed.

    Args:
        weights: float [O, C, h, w]; kept: bool, the same shape, true where a weight is kept. The first 64 filters and
            3 channels are shown.
    """
    values, there = np.nan_to_num(weights[:_MOST, :3]), kept[:_MOST, :3]
    strength = np.abs(values) / max(float(np.abs(values[there]).max(initial=0.0)), 1e-12)
    full = np.where((values > 0)[..., None], _POSITIVE, _NEGATIVE)
    colours = np.where(there[..., None], 1 + strength[..., None] * (full - 1), _REMOVED)
    count, channels, height, width = there.shape
    # One blank cell between the tiles of a filter, two between filters.
    wide, columns = channels * (width + 1) - 1, min(count, _COLUMNS)
    canvas = np.ones((-(-count // columns) * (height + 2) - 2, columns * (wide + 2) - 2, 3))
    for number in range(count):
        top, left = number // columns * (height + 2), number % columns * (wide + 2)
        for channel in range(channels):
            start = left + channel * (width + 1)
            canvas[top : top + height, start : start + width] = colours[number, channel]
    pixels = (255 * canvas.clip(0, 1)).round().astype(np.uint8).repeat(_CELL, 0).repeat(_CELL, 1)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
