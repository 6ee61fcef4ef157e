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

    def column(self, values: NDArray[Any]) -> Tensor:
        """Per-sample numbers, [n, 1, 1, 1]."""
        return torch.from_numpy(values).to(self.device).view(-1, 1, 1, 1)

    def float32(self, values: NDArray[np.float64]) -> Tensor:
        """The same as float32."""
        return self.column(values.astype(np.float32))

    def __getitem__(self, column: int) -> Tensor:
        return self.float32(self.host(column))

    def integer(self, column: int) -> Tensor:
        """int64 [n, 1, 1, 1]."""
        return self.column(self.host(column).astype(np.int64))

    def fill(self, first: int, channels: int) -> Tensor:
        """Fill levels float32 [n, channels, 1, 1], NaN as 0."""
        values = np.nan_to_num(self.args[:, first : first + channels]).astype(np.float32)
        return torch.from_numpy(values).to(self.device)[:, :, None, None]


def level(x: Tensor) -> Tensor:
    """Clamped and truncated."""
    return x.clamp_(0.0, 255.0).to(torch.uint8)
