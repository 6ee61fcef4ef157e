"""Twins of `kernels.noise`."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from kitae.augment.ops.noise import QUANTILE_STEP, noise_quantiles
from kitae.augment.twins.numbers import Numbers


def _scramble(place: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`kernels.noise.scramble` on int64 that hold 32-bit words."""
    mask = 0xFFFFFFFF

    def times(x: Tensor, factor: int) -> Tensor:
        return (x * (factor & 0xFFFF) + ((x * (factor >> 16) & 0xFFFF) << 16)) & mask

    x = (times(place, 0x9E3779B9) + low) & mask
    x = x ^ (x >> 16)
    x = times(x, 0x7FEB352D)
    x = x ^ (x >> 15)
    x = (x + high) & mask
    x = times(x, 0x846CA68B)
    return x ^ (x >> 16)


@functools.cache
def _quantiles(device: torch.device) -> Tensor:
    return torch.from_numpy(noise_quantiles().astype(np.float32)).to(device)


def gaussian_noise(x: Tensor, a: Numbers) -> Tensor:
    n = len(x)
    size = x[0].numel()
    place = torch.arange((size + 1) // 2, device=x.device).view(1, -1)
    word = _scramble(place, a.integer(1).view(-1, 1), a.integer(0).view(-1, 1))
    half = torch.stack((word & 0xFFFF, word >> 16), 2).view(n, -1)[:, :size]
    z = _quantiles(x.device)[half & 0x7FFF] * QUANTILE_STEP
    z = torch.where(half > 0x7FFF, -z, z)
    mean, sigma = (a.float32(a.host(column) * 255.0).view(-1, 1) for column in (2, 3))
    noise = mean + z * sigma
    return (x.reshape(n, -1).to(torch.int32) + noise.to(torch.int32)).clamp_(0, 255).to(torch.uint8).view_as(x)


def salt_and_pepper(x: Tensor, a: Numbers) -> Tensor:
    h, w = x.shape[2:]
    place = torch.arange(h * w, device=x.device).view(1, 1, h, w)
    word = _scramble(place, a.integer(1), a.integer(0)) >> 1
    hit, salt = (a.column((p * 2147483648.0).astype(np.int64)) for p in (a.host(2), a.host(2) * a.host(3)))
    return torch.where(word < hit, (word < salt).to(torch.uint8) * 255, x)
