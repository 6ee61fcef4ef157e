"""The numbers of a step, as twins read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Numbers:
    """The arguments of one step for some samples: columns on the device, shaped to broadcast against [n, C, H, W]."""

    def __init__(self, args: NDArray[np.float64], device: torch.device) -> None:
        self.args, self.device = args, device

    def host(self, column: int) -> NDArray[np.float64]:
        return np.ascontiguousarray(self.args[:, column])

    def float32(self, values: Any, ndim: int = 4) -> Tensor:
        """Per-sample numbers as float32 [n, 1, 1, 1]."""
        array = torch.from_numpy(np.asarray(values, np.float64).astype(np.float32))
        return array.to(self.device).view(-1, *[1] * (ndim - 1))

    def __getitem__(self, column: int) -> Tensor:
        return self.float32(self.host(column))

    def integer(self, column: int) -> Tensor:
        """int64 [n, 1, 1, 1]."""
        return torch.from_numpy(self.host(column).astype(np.int64)).to(self.device).view(-1, 1, 1, 1)

    def fill(self, first: int, channels: int) -> Tensor:
        """Fill levels float32 [n, channels, 1, 1], NaN as 0."""
        values = np.nan_to_num(self.args[:, first : first + channels]).astype(np.float32)
        return torch.from_numpy(values).to(self.device)[:, :, None, None]


def level(x: Tensor) -> Tensor:
    """Clamped and truncated."""
    return x.clamp_(0.0, 255.0).to(torch.uint8)
