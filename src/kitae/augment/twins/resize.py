"""Twins of `kernels.resize`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kitae.augment.twins.numbers import Numbers

_CHUNK = 1 << 23  # weights that are made at a time: 64 MB in float64


def exact(device: torch.device, most: float) -> torch.dtype:
    """The type in which products of weights and levels, and their sums, are exact.

    Args:
        most: pixels of a window to a pixel of the result, the largest ratio.
    """
    # A weight is below 2**15, which neither TF32 nor bfloat16 holds. Weights add up to 2 ** precision, which is 2**16
    # at most where three pixels become one: times 255, that is below 2**24, where float32 ceases to hold all integers.
    backend: Any = {"cpu": torch.backends.mkldnn, "cuda": torch.backends.cuda}.get(device.type)
    rounds = backend is not None and backend.matmul.fp32_precision in ("tf32", "bf16")
    return torch.float64 if rounds or most > 3.0 else torch.float32


def _triangle_weights(offset: Tensor, size: Tensor, side: int, new: int, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """The integer weights of `kernels.resize.triangle_weights`, for windows of images of `side` pixels.

    Args:
        offset, size: float64 [n, 1, 1], where each window begins, and its pixels.
        kind: the type of the result.

    Returns:
        [n, new, side], zero outside of the window, and 2 ** precision, [n, 1, 1, 1].
    """
    scale = size / new
    support = scale.clamp(min=1.0)
    centre = scale * (torch.arange(new, device=size.device, dtype=torch.float64).view(1, -1, 1) + 0.5)
    begin = (centre - support + 0.5).trunc().clamp(min=0.0)
    end = torch.minimum((centre + support + 0.5).trunc(), size)
    j = torch.arange(side, device=size.device, dtype=torch.float64) - offset
    w = (1.0 - ((j - centre + 0.5) * (1.0 / support)).abs()).clamp(min=0.0)
    w = torch.where((j >= begin) & (j < end), w, 0.0)
    w = (w.float().double() * (1.0 / w.sum(2, keepdim=True))).float().double()
    powers = 2.0 ** torch.arange(1, 23, device=size.device, dtype=torch.float64)
    fits = (0.5 + w.amax((1, 2)).unsqueeze(1) * powers).trunc() < 2**15  # rises with the power, so counting them does
    one = 2.0 ** fits.sum(1).double().view(-1, 1, 1)
    return (w * one + 0.5).floor().to(kind), one.unsqueeze(1).to(kind)


def resized_crop(x: Tensor, a: Numbers) -> Tensor:
    """Two products with sparse matrices, kept dense: of all samples at once, whatever their windows.

    Products and sums of integers are exact, in any order, so they are those of the compiled kernel.
    """
    n, c, height, width = x.shape
    new = int(a.args[0, 4]), int(a.args[0, 5])
    windows = torch.from_numpy(a.args[:, :4]).to(x.device).view(n, 4, 1, 1)
    out = torch.empty(n, c, *new, dtype=torch.uint8, device=x.device)
    chunk = max(1, _CHUNK // max(height * new[0], width * new[1]))
    kind = exact(x.device, (a.args[:, 2:4] / new).max())
    with torch.autocast(x.device.type, enabled=False):  # which would multiply in 16 bits
        for start in range(0, n, chunk):
            top, left, tall, wide = windows[start : start + chunk].unbind(1)
            weights, one = _triangle_weights(left, wide, width, new[1], kind)
            v = _levels(x[start : start + chunk].to(kind) @ weights.mT.unsqueeze(1), one)
            weights, one = _triangle_weights(top, tall, height, new[0], kind)
            out[start : start + chunk] = _levels(weights.unsqueeze(1) @ v, one).to(torch.uint8)
    return out


def _levels(sums: Tensor, one: Tensor) -> Tensor:
    return ((sums + one / 2) / one).floor().clamp(0, 255)
